"""One torch call: what it is called, what it multiplies, how it is done again."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .sighting import PLACE, Function, Step

PRODUCTS = frozenset({
    "matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "einsum", "baddbmm", "baddbmm_",
    "tensordot",
})  # fmt: skip
SOFTMAXES = frozenset({
    "softmax", "_softmax", "special_softmax", "_safe_softmax", "softmin",
})  # fmt: skip
DROPOUTS = frozenset({"dropout", "dropout_", "feature_dropout", "alpha_dropout"})
# changes neither what a tensor holds nor how it is laid out, but for its precision
CASTS = frozenset({
    "to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone",
})  # fmt: skip
# reading a shape, a flag or a number makes nothing new
LOOKS = frozenset({
    "__get__", "size", "dim", "stride", "numel", "is_contiguous", "is_floating_point", "all", "any",
    "isnan", "isinf", "max", "min", "amax", "amin", "item", "detach", "requires_grad_", "__len__",
    "ndimension", "data_ptr", "get_device", "tolist", "numpy", "__bool__", "cpu",
    "is_complex", "element_size", "storage_offset", "untyped_storage", "__format__", "__repr__",
    "register_hook", "allclose", "__hash__",
})  # fmt: skip
# acts along the last axis as a whole; over queries or keys it makes something else of scores
ALONG_THE_WIDTH = frozenset({"linear", "layer_norm", "rms_norm", "addmm"})
# picks and moves entries, as terms of relative positions are made
SHIFTS = frozenset({"pad", "gather", "take_along_dim", "roll", "index_select", "__getitem__"})
_IN_PLACE: dict[str, Function] = {
    "__iadd__": torch.add,
    "__isub__": torch.sub,
    "__imul__": torch.mul,
    "__itruediv__": torch.div,
}


class Call(NamedTuple):
    """One torch call and its result."""

    function: Function
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Tensor

    def step(self, tensor: Tensor) -> Step:
        """It as a step of a followed tensor, in-place functions out of place."""
        args = tuple([_with_place(a, tensor) for a in self.args])
        kwargs = {name: PLACE if a is tensor else a for name, a in self.kwargs.items()}
        return Step(self._pure(), self.name, args, kwargs, tuple(self.result.shape))

    def _pure(self) -> Function:
        name = self.name
        if name in _IN_PLACE:
            return _IN_PLACE[name]
        if name[-1:] == "_" and name[-2:] != "__":
            pure: Function = getattr(Tensor, name[:-1], self.function)
            return pure
        return self.function


def _with_place(a: Any, tensor: Tensor) -> Any:
    """An argument of a call, the followed tensor in it replaced by a place."""
    if isinstance(a, (tuple, list)):
        return tuple([PLACE if one is tensor else one for one in a])
    return PLACE if a is tensor else a


class Operands(NamedTuple):
    """The factors of a product, and the steps that the same call adds."""

    left: Tensor
    right: Tensor
    equation: str
    steps: tuple[Step, ...] = ()


def operands(call: Call) -> Operands | None:
    """Left and right of a product; None for one of other things."""
    args, kwargs = call.args, call.kwargs
    if call.name == "einsum":
        given = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
        if not isinstance(args[0], str) or len(given) != 2:
            return None
        return Operands(given[0], given[1], args[0])
    if call.name == "baddbmm" or (call.name == "baddbmm_" and kwargs.get("beta", 1) == 0):
        return _operands_of_sum(call)  # in place, a summand that counts would be gone by now
    if call.name in ("baddbmm_", "tensordot"):
        return None
    left = args[0] if args else kwargs.get("input")
    right = args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("mat2"))
    if call.name == "__rmatmul__":
        left, right = right, left
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return None
    return Operands(left, right, "")


def _operands_of_sum(call: Call) -> Operands:
    """``beta * input + alpha * batch1 @ batch2``."""
    names = ("input", "batch1", "batch2")[len(call.args) :]
    added, left, right = [*call.args, *(call.kwargs[name] for name in names)][:3]
    beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)
    shape = tuple(call.result.shape)
    steps: tuple[Step, ...] = ()
    if alpha != 1:
        steps = (Step(torch.mul, "mul", (PLACE, alpha), {}, shape),)
    if beta != 0:
        steps = (*steps, Step(torch.add, "add", (PLACE, added * beta), {}, shape))
    return Operands(left, right, "", steps)


def name_of(function: Function) -> str:
    """The name of an operation; ``x.mT`` and ``x.T`` by the attribute that is read."""
    name: str = getattr(function, "__name__", "")
    if name != "__get__":
        return name
    attribute = getattr(getattr(function, "__self__", None), "__name__", "")
    return attribute if attribute in ("mT", "T") else name


def traced_name_of(function: Function, args: tuple[Any, ...], result: Any) -> str:
    """The same while a compiler traces, which does not say which attribute is read."""
    name: str = getattr(function, "__name__", "")
    if name != "__get__" or not isinstance(result, Tensor) or not args or result is args[0]:
        return name
    before, after = args[0].shape, result.shape
    if len(before) < 2 or before[-2:] != after[-2:][::-1] or before[:-2] != after[:-2]:
        return name
    if before[-1] != before[-2] or args[0].stride() != result.stride():
        return "mT"
    return name


def is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter, or a view of one."""
    if isinstance(tensor, nn.Parameter):
        return True
    if torch.compiler.is_compiling():
        return False
    return tensor._is_view() and isinstance(tensor._base, nn.Parameter)  # noqa: SLF001


def is_view_of(view: Tensor, whole: Tensor) -> bool:
    """Whether a write into one tensor is a write into the other, as far as torch tells."""
    if torch.compiler.is_compiling() or view is whole or not view._is_view():  # noqa: SLF001
        return False
    base = view._base  # noqa: SLF001
    return whole is base or (whole._is_view() and whole._base is base)  # noqa: SLF001


# writes, done again on a copy


def write_step(tensor: Tensor, index: Any, value: Any) -> Step:
    """``tensor[index] = value``."""
    return Step(_write, "__setitem__", (PLACE, index, value), {}, tuple(tensor.shape))


def view_write_step(path: tuple[Step, ...], write: Step, whole: Tensor) -> Step:
    """A write into the view of ``whole`` that ``path`` leads to."""
    function = functools.partial(_write_into_view, path, write)
    return Step(function, "__setitem__", (PLACE,), {}, tuple(whole.shape))


def _write(tensor: Tensor, index: Any, value: Any) -> Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


def _write_into_view(path: tuple[Step, ...], write: Step, whole: Tensor) -> Tensor:
    changed = whole.clone()
    view = changed
    for step in path:
        view = step.function(*(view if a is PLACE else a for a in step.args), **step.kwargs)
    view.copy_(write.function(*(view if a is PLACE else a for a in write.args), **write.kwargs))
    return changed
