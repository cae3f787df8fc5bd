"""Tensors that meet each on axes of its own: ``q[:, :, :, None] * k[:, :, None]``, then summed.

Such a call pairs every entry of one tensor with every one of the other, as a matrix product does.
Multiplied and summed it is one, and is told as an einsum in which a tensor's single entries have
labels of their own. Added, subtracted or compared it gives scores of another kind.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .calls import Call, Operands
from .memory import Memory

_MULTIPLICATIONS = frozenset({"mul", "__mul__", "__rmul__", "multiply"})
_SUMS = frozenset({"sum", "vecdot", "linalg_vecdot"})
# make scores too, which are no products
COMPARISONS = frozenset({
    "add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "subtract", "cosine_similarity",
    "pairwise_distance", "cdist",
})  # fmt: skip
MAY_PAIR = _MULTIPLICATIONS | _SUMS | COMPARISONS

_LABELS = "abcdefgh"


class Pairings:
    """The products of pairs, until somebody sums them."""

    def __init__(self) -> None:
        self._pairs: Memory[tuple[Tensor, Tensor]] = Memory()

    def begin(self, *, tracing: bool) -> None:
        """Know nothing yet."""
        self._pairs.begin(tracing=tracing)

    def concern(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether a call is of two tensors on axes of their own, or a sum of such a product."""
        if name == "sum":
            return bool(args) and self._pairs.get(args[0]) is not None
        return _pair_of(name, args) is not None

    def product_of(self, call: Call) -> Operands | None:
        """The operands of a sum of products; a product alone is remembered."""
        is_sum = call.name == "sum"
        pair = self._pairs.get(call.args[0]) if is_sum else _pair_of(call.name, call.args)
        if pair is not None and call.name in _MULTIPLICATIONS:
            self._pairs.put(call.result, pair)
        return None if pair is None or call.name not in _SUMS else _operands_of_sum(call, pair)


def _pair_of(name: str, args: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    """The two floating point tensors of a call that meet each on axes of its own; None: no such."""
    if len(args) < 2 or not isinstance(args[0], Tensor) or not isinstance(args[1], Tensor):
        return None
    left, right = args[0], args[1]
    one, other = left.shape, right.shape
    if one == other and name != "cdist":  # nearly always
        return None
    if name == "cdist":
        return left, right
    if not 3 <= max(len(one), len(other)) <= len(_LABELS):
        return None
    alone = own = False
    for m, n in zip(reversed(one), reversed(other), strict=False):
        alone = alone or (m == 1 and n != 1)
        own = own or (m != 1 and n == 1)
    if len(one) != len(other):
        alone, own = alone or len(one) < len(other), own or len(one) > len(other)
    both_float = alone and own and left.is_floating_point() and right.is_floating_point()
    return (left, right) if both_float else None


def _operands_of_sum(call: Call, pair: tuple[Tensor, Tensor]) -> Operands | None:
    """A sum of the products of two tensors as an einsum; None where it is no product of matrices.

    Args:
        call: the sum.
        pair: what was multiplied.
    """
    ndim = max(pair[0].ndim, pair[1].ndim)
    axes = _summed(call, ndim)
    if axes is None:
        return None
    left, right = pair
    one, other = ((1,) * (ndim - t.ndim) + tuple(t.shape) for t in pair)
    of_right = [i for i in range(ndim) if one[i] == 1 and other[i] != 1]
    of_left = [i for i in range(ndim) if other[i] == 1 and one[i] != 1]
    if not of_left or not of_right or axes & {*of_left, *of_right}:
        return None
    labels = _LABELS[:ndim]
    # of several, the last is that of queries or keys; a batch that one tensor lacks stays shared
    for_left = labels.replace(labels[of_right[-1]], "Q")[ndim - left.ndim :]
    for_right = labels.replace(labels[of_left[-1]], "K")[ndim - right.ndim :]
    out = "".join(label for i, label in enumerate(labels) if i not in axes)
    return Operands(left, right, f"{for_left},{for_right}->{out}")


def _summed(call: Call, ndim: int) -> set[int] | None:
    """The axes that are summed over; None: all of them, or they stay."""
    if call.kwargs.get("keepdim", len(call.args) > 2 and call.args[2]):
        return None
    if call.name == "sum":
        given = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    else:
        given = call.kwargs.get("dim", -1)
    if given is None:
        return None
    dims = given if isinstance(given, (tuple, list)) else (given,)
    return {int(dim) % ndim for dim in dims}
