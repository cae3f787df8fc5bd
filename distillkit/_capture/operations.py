"""Functions that compute a whole attention, and how each is read.

The arguments of such a function say everything. Two kinds of it are known by name: those that
torch shows to a function mode (its own, and custom operators), and plain Python functions of a
library, which are made to show themselves while a capture is open (``kernels``). Each is one
``OperationSpec``, the core's own like a stranger's.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._attention import Attention
from .._plugins.registry import provided
from .._plugins.specs import OperationSpec, Reference, check_target, resolve
from .._torch_private import Overload, Overloads, operator_of
from ..errors import CaptureError, PluginLoadWarning, SpecError

Function = Callable[..., Any]

OPERATORS = (Overload, Overloads)
_PREFIX = "torch.ops."
_TORCHS_OWN = frozenset({"aten", "prim", "prims", "c10d", "_c10d_functional", "higher_order"})


def readers(also: Iterable[OperationSpec] = ()) -> dict[Any, Reference]:
    """Function -> how its calls are read, as the core and plugins name them.

    A target whose module is not loaded cannot be called by the model and is left out, as is one
    that is not there, with a warning.

    Args:
        also: further operations, that nobody registered.
    """
    known = [spec for specs in provided(OperationSpec).values() for spec in specs.values()]
    found: dict[Any, Reference] = {}
    for spec in [*known, *also]:
        try:
            target = _loaded(spec)
        except SpecError as error:
            message = f"operation {spec.name!r} was left out: {error}"
            warnings.warn(message, PluginLoadWarning, stacklevel=4)
            continue
        if target is not None:
            found[target] = spec.read
    return found


def _loaded(spec: OperationSpec) -> Any:
    """The function that a spec names; None while nobody has loaded it."""
    target = spec.target
    if isinstance(target, str):
        if target.startswith(_PREFIX):
            namespace, _, name = target.removeprefix(_PREFIX).partition(".")
            return getattr(getattr(torch.ops, namespace), name, None)
        if target.partition(":")[0] not in sys.modules:
            return None
        target = resolve(target)
        check_target(spec, target)
    return operator_of(target)


def may_attend(operator: Any, args: tuple[Any, ...]) -> bool:
    """Whether a foreign operator may compute attention, judged by what it is given."""
    namespace = str(operator).partition(".")[0].partition(":")[0]
    wide = [a for a in args if isinstance(a, Tensor) and a.ndim >= 3]
    return namespace not in _TORCHS_OWN and len(wide) >= 3


def cannot_see_into(kernel: str) -> str:
    return (
        f"it calls the kernel {kernel}, which nothing can see into; tell capture how to read its "
        "arguments with an OperationSpec (dk.register, or a plugin's distillkit_operations)"
    )


def opened(function: types.FunctionType) -> types.FunctionType:
    """A copy of a torch function that shows the operations in it instead of itself."""
    shown = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = types.FunctionType(
        function.__code__, shown, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


# made of operations that can be followed, where the whole says too little
OPENED: dict[Any, Function] = {
    F.multi_head_attention_forward: opened(F.multi_head_attention_forward),  # type: ignore[arg-type]
}


def read_scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 (the call's own argument)
    is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001, FBT001, FBT002
) -> Attention:
    """The attention of one fused call, from the arguments it was called with."""
    if query.is_nested or key.is_nested:
        raise CaptureError(
            "scaled_dot_product_attention was called with nested tensors; give the model padded "
            "ones (for nn.TransformerEncoder: enable_nested_tensor=False)"
        )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        return Attention(query, key, value, scale=scale, mask=attn_mask, causal=is_causal)
    return Attention(query, key, value, scale=scale, bias=attn_mask, causal=is_causal)


def read_flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor] | None = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001, FBT001, FBT002 (the call's own argument)
    **_: Any,
) -> Attention:
    """The attention of one ``flex_attention`` call; its functions are evaluated on every score."""
    mask_mod = None if block_mask is None else block_mask.mask_mod
    b, h, q, _d = query.shape
    shape = (b, h, q, key.shape[2])
    plain = Attention(query, key, value, scale=scale)
    if score_mod is None and mask_mod is None:
        return plain
    places = [
        torch.arange(n, device=query.device).view([-1 if i == axis else 1 for i in range(4)])
        for axis, n in enumerate(shape)
    ]

    def scores() -> Tensor:
        given = plain.scores()
        if score_mod is not None:
            given = score_mod(given, *places)
        if mask_mod is not None:
            given = torch.where(mask_mod(*places), given, -torch.inf)
        return given.expand(shape)

    return Attention.replayed(shape, scores=scores, query=query, key=key, value=value)
