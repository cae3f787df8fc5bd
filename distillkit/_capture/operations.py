"""One small reader for each way in which a model computes attention.

A reader is shown every torch call that a chosen module makes, with its result, and says when an
attention is complete. Two ways are read here: the fused ``scaled_dot_product_attention``, whose
arguments say everything, and the eager ``softmax(query @ key^T ...) @ value``, which is followed
from product to softmax.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._attention import Attention
from .._plugins.registry import provided
from .._plugins.specs import OperationSpec, resolve
from ..errors import CaptureError, ShapeError

Call = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]
Reader = Callable[..., Attention]

_PRODUCTS = {"matmul", "__matmul__", "bmm"}
_SOFTMAXES = {"softmax", "_softmax"}
_IN_PLACE: dict[str, Any] = {
    "__iadd__": torch.add,
    "__isub__": torch.sub,
    "__imul__": torch.mul,
    "__itruediv__": torch.div,
}
# reading a shape, a flag or a value makes no new scores
_LOOKS = {
    "__get__", "size", "dim", "stride", "numel", "is_contiguous", "is_floating_point", "all", "any",
    "isnan", "isinf", "max", "min", "amax", "item", "detach", "requires_grad_",
}  # fmt: skip
_FOLLOWED_AT_MOST = 8


class _Scores:
    """Stands for the scores themselves among the arguments of a recorded call."""


SCORES = _Scores()


def readers() -> dict[Callable[..., Any], Reader]:
    """The functions whose arguments say everything, as plugins and the core name them.

    A target whose module is not loaded cannot be called by the model and is left out.
    """
    found: dict[Callable[..., Any], Reader] = {}
    for specs in provided(OperationSpec).values():
        for spec in specs.values():
            target = spec.target
            if not isinstance(target, str) or target.partition(":")[0] in sys.modules:
                found[resolve(target)] = resolve(spec.read)
    return found


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
    if query.ndim != 4:
        raise CaptureError(
            f"scaled_dot_product_attention was called with a query of shape {tuple(query.shape)}; "
            "(b, h, q, d) is read, with batch and heads as axes of their own"
        )
    boolean = attn_mask is not None and attn_mask.dtype == torch.bool
    return Attention(
        query,
        key,
        value,
        scale=scale,
        mask=attn_mask if boolean else None,
        bias=None if boolean else attn_mask,
        causal=is_causal,
    )


@dataclass(frozen=True)
class _Product:
    """Scores on their way from ``query @ key^T`` to the softmax."""

    query: Tensor
    key: Tensor
    steps: tuple[Call, ...] = ()


@dataclass
class EagerReader:
    """Follows a module's tensors from the product of two of them to a softmax.

    Attributes:
        done: called with each attention, when its softmax is seen.
        failed: called with the reason when a softmax of a product was seen but cannot be read.
    """

    done: Callable[[Attention], None]
    failed: Callable[[str], None]
    _followed: list[tuple[weakref.ref[Tensor], _Product]] = field(default_factory=list)

    def saw(self, call: Call, result: Any) -> None:
        """Take note of one call that a chosen module made."""
        function, args, kwargs = call
        name = getattr(function, "__name__", "")
        if not isinstance(result, Tensor) or name in _LOOKS:
            return
        if name in _PRODUCTS and len(args) == 2 and _may_make_scores(*args):
            self._follow(result, _Product(query=args[0], key=args[1].mT))
            return
        scores, product = self._followed_among(args, kwargs)
        if scores is None or product is None:
            return
        if name in _SOFTMAXES:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if axis in (-1, result.ndim - 1):
                self._finish(product, tuple(result.shape))
        elif result.shape == scores.shape:
            step = (
                _out_of_place(function),
                _without(args, scores),
                _without_values(kwargs, scores),
            )
            self._follow(result, replace(product, steps=(*product.steps, step)))

    def forget(self) -> None:
        """Follow nothing any more: the outermost chosen module has returned."""
        self._followed.clear()

    def _finish(self, product: _Product, shape: tuple[int, ...]) -> None:
        if len(shape) != 4:
            self.failed(
                f"it takes a softmax over scores of shape {shape}; (b, h, q, k) is read, with "
                "batch and heads as axes of their own"
            )
            return
        try:
            attention = attention_of(product.query, product.key, product.steps, shape)
        except ShapeError as error:
            self.failed(str(error))
            return
        self.done(attention)

    def _followed_among(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | None, _Product | None]:
        """The newest followed tensor among the arguments of a call."""
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        for reference, product in reversed(self._followed):
            tensor = reference()
            if tensor is not None and any(tensor is a for a in given):
                return tensor, product
        return None, None

    def _follow(self, tensor: Tensor, product: _Product) -> None:
        # an in-place step returns the tensor that was followed already: the newer state replaces it
        others = [
            (reference, old)
            for reference, old in self._followed
            if (other := reference()) is not None and other is not tensor
        ]
        self._followed = [*others, (weakref.ref(tensor), product)][-_FOLLOWED_AT_MOST:]


def attention_of(
    query: Tensor, key: Tensor, steps: tuple[Call, ...], shape: tuple[int, ...]
) -> Attention:
    """The attention whose scores are ``query @ key^T`` after ``steps``.

    Scaling, additive and boolean masks and biases become fields; where a step is anything else,
    the scores are replayed step by step, whenever they are asked for.
    """
    scale, mask, bias = 1.0, None, None
    for function, args, kwargs in steps:
        name = getattr(function, "__name__", "")
        factor = _factor(name, args)
        added = _added(name, args, kwargs)
        dropped = _dropped(name, args, kwargs)
        if factor is not None and bias is None:
            scale *= factor
        elif added is not None:
            bias = added if bias is None else bias + added
        elif dropped is not None:
            mask = ~dropped if mask is None else mask & ~dropped
        elif name not in {"float", "to", "type_as", "contiguous"}:
            return Attention.replayed(
                lambda: _replay(query, key, steps), shape, query=query, key=key
            )
    return Attention(query, key, scale=scale, mask=mask, bias=bias)


def _replay(query: Tensor, key: Tensor, steps: tuple[Call, ...]) -> Tensor:
    scores = query @ key.mT
    for function, args, kwargs in steps:
        given = [scores if a is SCORES else a for a in args]
        named = {name: scores if a is SCORES else a for name, a in kwargs.items()}
        scores = function(*given, **named)
    return scores


def _factor(name: str, args: tuple[Any, ...]) -> float | None:
    """The number that a step multiplies the scores with; None: it does something else."""
    if len(args) != 2:
        return None
    number = args[1] if args[0] is SCORES else args[0]
    if isinstance(number, Tensor) and number.ndim == 0 and not number.requires_grad:
        number = number.item()
    if not isinstance(number, (int, float)):
        return None
    if name in {"mul", "__mul__", "__rmul__", "multiply"}:
        return float(number)
    if name in {"div", "__truediv__", "true_divide", "divide"} and args[0] is SCORES:
        return 1.0 / number
    return None


def _added(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that a step adds to the scores; None: it does something else."""
    if name not in {"add", "__add__", "__radd__"} or len(args) != 2 or kwargs:
        return None
    other = args[1] if args[0] is SCORES else args[0]
    return other if isinstance(other, Tensor) and other.is_floating_point() else None


def _dropped(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The entries that a step fills with the lowest number; None: it does something else."""
    if name == "masked_fill" and len(args) == 3 and args[0] is SCORES:
        _, dropped, fill = args
    elif name == "where" and len(args) == 3 and args[1] is SCORES and not kwargs:
        dropped, _, fill = ~args[0], *args[1:]
    else:
        return None
    fill = fill.item() if isinstance(fill, Tensor) and fill.ndim == 0 else fill
    lowest = isinstance(fill, (int, float)) and fill <= torch.finfo(torch.float16).min / 2
    return dropped if lowest and isinstance(dropped, Tensor) else None


def _may_make_scores(one: Any, other: Any) -> bool:
    """Two activations multiplied per batch and head; a weight or an outer product is neither."""
    return (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and not isinstance(one, nn.Parameter)
        and not isinstance(other, nn.Parameter)
        and one.ndim == other.ndim >= 3
        and one.shape[-1] > 1
    )


def _out_of_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """What an in-place function computes, without overwriting: ``add_`` -> ``add``."""
    name = getattr(function, "__name__", "")
    if name in _IN_PLACE:
        return cast("Callable[..., Any]", _IN_PLACE[name])
    if name.endswith("_") and not name.endswith("__"):
        replacement: Callable[..., Any] = getattr(torch.Tensor, name[:-1])
        return replacement
    return function


def _without(args: tuple[Any, ...], scores: Tensor) -> tuple[Any, ...]:
    return tuple(SCORES if a is scores else a for a in args)


def _without_values(kwargs: Mapping[str, Any], scores: Tensor) -> dict[str, Any]:
    return {name: SCORES if a is scores else a for name, a in kwargs.items()}
