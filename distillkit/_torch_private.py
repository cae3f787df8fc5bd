"""Every name of torch that torch does not promise to keep, each with what is done without it.

No other module names one, which a test holds. A name that a torch lacks costs at most a piece of
speed or a precise word in an error: what a fallback cannot know, it takes for the case that is
computed the longer way.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, has_torch_function
from torch.utils.checkpoint import checkpoint

from .errors import SpecError


def _find(module: str, name: str) -> Any:
    """A private name of torch; None: this torch has none of that name."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


# transforms of torch.func


def _lacks_storage(x: Tensor) -> bool:
    """Whether a plain tensor has nowhere to hold numbers, as inside of a transform."""
    if type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided:
        return False
    try:
        x.data_ptr()
    except RuntimeError:
        return True
    return False


def _perhaps(*_: object) -> bool:
    """Yes, to a question that nobody can answer: it leads to the longer way."""
    return True


def _itself(x: Tensor) -> Tensor:
    return x


# torch's own functions where it has them, without a call in between: a compiler knows them
is_functorch_wrapped_tensor: Callable[[Tensor], bool] = (
    _find("torch._C._functorch", "is_functorch_wrapped_tensor") or _lacks_storage
)
"""Whether a tensor is one of ``vmap``, ``grad`` or another transform, and ends with it."""

is_legacy_batched_tensor: Callable[[Tensor], bool] = (
    _find("torch._C._functorch", "is_legacy_batchedtensor") or _perhaps
)
"""Whether autograd itself maps over a tensor (``is_grads_batched``)."""

are_transforms_active: Callable[[], bool] = (
    _find("torch._C", "_are_functorch_transforms_active") or _perhaps
)
"""Whether a ``torch.func`` transform is at work."""

_unwrap: Callable[[Tensor], Tensor] = _find("torch._C._functorch", "get_unwrapped") or _itself


def innermost(x: Tensor) -> Tensor:
    """The tensor inside every transform; where torch does not give it away, the tensor itself."""
    while is_functorch_wrapped_tensor(x):
        inner = _unwrap(x)
        if inner is x:
            break
        x = inner
    return x


# function modes


def _has_modes() -> bool:
    return bool(has_torch_function((None,)))  # modes alone override None


is_function_mode_on: Callable[[], bool] = (
    _find("torch._C", "_is_torch_function_mode_enabled") or _has_modes
)
"""Whether a ``TorchFunctionMode`` is on in this thread."""

_mode_stack = _find("torch.overrides", "_get_current_function_mode_stack")
_pop_mode = _find("torch.overrides", "_pop_mode")
_push_mode = _find("torch.overrides", "_push_mode")


def take_off(mode: TorchFunctionMode, *, was_on: bool) -> None:
    """Take a mode off the thread's stack, wherever it lies; what lies on it stays.

    Args:
        mode: which one.
        was_on: what is believed where torch does not show the stack; the uppermost mode goes then.
    """
    if _mode_stack is None or _pop_mode is None or _push_mode is None:
        if was_on:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return
    above = []
    while any(one is mode for one in _mode_stack()):
        top = _pop_mode()
        if top is not mode:
            above.append(top)
    for one in reversed(above):
        _push_mode(one)


# autograd and checkpoints

_graph_task = _find("torch._C", "_current_graph_task_id")
_ENTRANCES = (torch.autograd.backward.__code__, torch.autograd.grad.__code__)
_Reentrant = _find("torch.utils.checkpoint", "CheckpointFunction")
_reentrant_code: types.CodeType | None = getattr(
    getattr(_Reentrant, "forward", None), "__code__", None
)


def in_backward() -> bool:
    """Whether a backward runs now in this thread, and calls what is running."""
    if _graph_task is None:
        return _is_called_by_backward()
    return bool(_graph_task() != -1)


def _is_called_by_backward() -> bool:
    """The same by the calls that lead here: a device's thread begins in torch's own code."""
    outermost = None
    for outermost in _frames():
        if outermost.f_code in _ENTRANCES:
            return True
    name = "" if outermost is None else str(outermost.f_globals.get("__name__"))
    return name.partition(".")[0] == "torch"


def in_reentrant_checkpoint() -> bool:
    """Whether a checkpoint with ``use_reentrant=True`` is running, which turned gradients off.

    Where torch hides its function, any checkpoint is taken for one: the other kind leaves gradients
    on, so that nobody asks.
    """
    if _reentrant_code is not None:
        return any(frame.f_code is _reentrant_code for frame in _frames())
    return any(frame.f_globals.get("__name__") == checkpoint.__module__ for frame in _frames())


def is_reentrant_node(name: str) -> bool:
    """Whether a node of autograd's graph, by its name, is a checkpoint with ``use_reentrant``."""
    if _Reentrant is None:
        return "Checkpoint" in name
    return bool(name == f"{_Reentrant.__name__}Backward")


def _frames() -> Iterator[types.FrameType]:
    frame: types.FrameType | None = sys._getframe(1)  # noqa: SLF001 (Python has no other)
    while frame is not None:
        yield frame
        frame = frame.f_back


# modules

# a wrapper that torch puts around a module: its class, and where it keeps the module
_SLOTS = {
    "OptimizedModule": "_orig_mod",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
}


def slot_of(module: nn.Module) -> str | None:
    """The attribute in which one of torch's private wrappers keeps its module; None: it is none.

    A wrapper is known by that attribute. One whose class alone is known keeps it elsewhere, in the
    only child that it has.
    """
    children = children_of(module)
    for slot in _SLOTS.values():
        if children.get(slot) is not None:
            return slot
    if len(children) != 1 or not _is_of_torch(type(module), *_SLOTS):
        return None
    return next(iter(children))


def _is_of_torch(cls: type, *names: str) -> bool:
    """Whether a class is, or inherits from, a class of torch with one of these names."""
    return any(
        one.__name__ in names and one.__module__.partition(".")[0] == "torch" for one in cls.__mro__
    )


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module go through ``torch.compile``."""
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    return _is_of_torch(type(module), "OptimizedModule") or _SLOTS[
        "OptimizedModule"
    ] in children_of(module)


def children_of(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """The children by name, shared ones too; ``named_children()`` leaves those out, and is slow."""
    return module._modules  # noqa: SLF001


def hooks_before(module: nn.Module) -> tuple[Callable[..., Any], ...]:
    """The hooks that run before a module; none where torch does not list them.

    Without the list every capture of a compiled model puts new hooks on it, and it compiles again.
    """
    return tuple(getattr(module, "_forward_pre_hooks", {}).values())


def hooks_after(module: nn.Module) -> tuple[Callable[..., Any], ...]:
    """The hooks that run after a module; none where torch does not list them."""
    return tuple(getattr(module, "_forward_hooks", {}).values())


_NESTED = "use_nested_tensor"


def may_nest(encoder: nn.TransformerEncoder) -> bool:
    """Whether an encoder may turn its padded input into nested tensors."""
    return bool(getattr(encoder, _NESTED, True))


def nest(encoder: nn.TransformerEncoder, *, allowed: bool) -> bool:
    """Let an encoder make nested tensors, or not.

    Returns:
        Whether it is settled; else torch keeps the switch elsewhere, and only the whole process can
        be kept from it, ``torch.backends.mha.set_fastpath_enabled``.
    """
    if not hasattr(encoder, _NESTED):
        return False
    setattr(encoder, _NESTED, allowed)
    return True


# operators

Overloads = type(torch.ops.aten.relu)
"""The class of operators, ``torch.ops.aten.relu``."""

Overload = type(torch.ops.aten.relu.default)
"""The class of one of its signatures."""


def operator_of(function: Any) -> Any:
    """The operator behind a function, without its overload; a function that is none stays.

    Raises:
        SpecError: ``torch.library.custom_op`` made it, and does not say which operator it is.
    """
    if isinstance(function, Overload):
        return function.overloadpacket
    if isinstance(function, Overloads):  # asked while a compiler traces, too, which goes no further
        return function
    if not _is_of_torch(type(function), "CustomOpDef"):
        return function
    overload = getattr(function, "_opoverload", None)
    if overload is None:
        raise SpecError(
            f"torch {torch.__version__} does not say which operator {function!r} is; name it as "
            'torch.ops does, target="torch.ops.<namespace>.<name>"'
        )
    return overload.overloadpacket


# values


def _leaves_of(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in _leaves_of(value)]
    if isinstance(tree, (tuple, list)):
        return [leaf for value in tree for leaf in _leaves_of(value)]
    return [tree]


leaves_of: Callable[[Any], list[Any]] = _find("torch.utils._pytree", "tree_leaves") or _leaves_of
"""What containers hold, and the containers in them."""
