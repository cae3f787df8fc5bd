"""What each axis of a tensor is made of, through views, permutations, splits and products.

A model may fold heads into the batch, windows into heads, or put queries where others put keys.
Shapes alone cannot tell: ``(8, 5, 5)`` scores may be eight examples, eight heads or two examples of
four heads. What can tell is how they were made. An *axis* is therefore a tuple of *factors*, the
indivisible pieces that a tensor's operations shuffled around, slowest first; every factor knows
whether it comes from the width of a hidden state (then it numbers heads) or from its positions.

An example: two heads of width 4, five tokens, heads folded into the batch. Brackets are axes, ``w``
marks a factor that comes from a width::

    linear           (b, 5, 24)        [b] [5] [w24]
    view             (b, 5, 3, 2, 4)   [b] [5] [w3] [w2] [w4]     w24 is split, for everybody
    permute, unbind  (b, 2, 5, 4)      [b] [w2] [5] [w4]          queries; keys likewise
    reshape          (2 b, 5, 4)       [b w2] [5] [w4]
    q @ k.mT         (2 b, 5, 5)       [b w2] [5 query] [5 key]   w4 is summed over

The first axis of the scores has two factors. ``w2`` comes from a width, so it numbers heads:
``groups_of`` takes it out, and ``arrange`` lays the scores out as ``(b, 2, 5, 5)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .._watch.history import ORDER_KEEPING, Node


class Factor:
    """An indivisible piece of an axis; splitting one gives it ``parts`` for everybody."""

    __slots__ = ("origin", "parts", "role", "size")

    def __init__(self, size: int, origin: str, role: str = "") -> None:
        self.size = size
        self.origin = origin  # "width", "position", or "unknown": handed in from outside
        self.role = role  # "lead", "query" or "key" once a product has been taken
        self.parts: tuple[Factor, Factor] | None = None

    def split(self, slow: int) -> tuple[Factor, Factor]:
        """As ``slow`` times the rest; the same two factors for everybody who asks."""
        if self.parts is None:
            fast = self.size // slow
            self.parts = (
                Factor(slow, self.origin, self.role), Factor(fast, self.origin, self.role),
            )  # fmt: skip
        if self.parts[0].size != slow:
            raise Unreadable("one axis is split in two ways that do not fit together")
        return self.parts


Axis = tuple[Factor, ...]
Axes = tuple[Axis, ...]


class Unreadable(Exception):  # noqa: N818 (a verdict on a model, turned into a CaptureError)
    """Why an attention was seen but cannot be told in terms of batch, heads, queries and keys."""


def factors_of(axis: Axis) -> Axis:
    """The axis in factors that nobody has split further."""
    found: list[Factor] = []
    for factor in axis:
        found.extend((factor,) if factor.parts is None else factors_of(factor.parts))
    return tuple(found)


def size_of(axis: Axis) -> int:
    return math.prod(factor.size for factor in axis)


def fresh_axes(shape: Sequence[int], origin: str = "position") -> Axes:
    """Fresh axes: a tensor whose history begins here. Its last axis is a width."""
    last = len(shape) - 1
    origins = ["width" if i == last else origin for i in range(len(shape))]
    return tuple(
        () if n == 1 else (Factor(n, origin),) for n, origin in zip(shape, origins, strict=True)
    )


def axes_of(node: Node) -> Axes:
    """The axes of the tensor that a node describes, from the beginning of its history."""
    if not node.parents:
        return fresh_axes(node.shape, "position" if node.name == "made" else "unknown")
    axes = axes_of(node.parents[0])
    if node.name == "cat" and _pieces_of_one_width(node.parents):
        dim = int(node.args[0]) % len(axes) if node.args else 0
        heads = Factor(len(node.parents), "width")
        return (*axes[:dim], (heads, *axes[dim]), *axes[dim + 1 :])
    return apply_operation(axes, node.name, node.args, node.shape)


def _pieces_of_one_width(parents: Sequence[Node]) -> bool:
    """Whether tensors are equal slices of one hidden state's width: heads, one by one."""
    wholes = [parent.parents[0] for parent in parents if parent.parents]
    return (
        len(wholes) == len(parents) > 1
        and all(one is wholes[0] for one in wholes)
        and all(parent.name in ("chunk", "split", "tensor_split") for parent in parents)
        and all(parent.shape[-1] * len(parents) == wholes[0].shape[-1] for parent in parents)
    )


def apply_operation(axes: Axes, name: str, args: tuple[Any, ...], after: tuple[int, ...]) -> Axes:
    """The axes after one operation; of an operation that is not known, whatever keeps its size.

    Raises:
        Unreadable: the operation rearranges entries in a way that shapes do not tell.
    """
    if name in ORDER_KEEPING:
        return regroup(axes, after)
    if name in _REORDERING:
        return _REORDERING[name](axes, args)
    if name == "__getitem__":
        return _index(axes, args[0], after)
    if name in ("select", "unbind"):
        dim = int(args[0]) if args else 0
        return _drop(axes, dim)
    if name in ("stack", "expand", "expand_as", "broadcast_to") and len(after) > len(axes):
        axes = ((),) * (len(after) - len(axes)) + axes
    return _resize(axes, after)


# groups: which factors make batch, heads, queries and keys


class Groups(NamedTuple):
    """The factors of batch, heads, queries and keys, each slowest first."""

    batch: Axis
    heads: Axis
    queries: Axis
    keys: Axis

    @property
    def shape(self) -> tuple[int, int, int, int]:
        b, h, q, k = (size_of(group) for group in self)
        return b, h, q, k


def groups_of(axes: Axes, softmax_axis: int, keys: str, examples: frozenset[int]) -> Groups:
    """Which factors of the scores are batch, heads, queries and keys.

    Args:
        axes: of the scores when the softmax was taken.
        softmax_axis: along which it was taken.
        keys: the role of the side that it runs over, ``"key"`` or ``"query"``.
        examples: how many examples the model may have been given.

    Raises:
        Unreadable: the softmax does not run over the keys, or heads cannot be told from examples.
    """
    queries = "query" if keys == "key" else "key"
    key_axis = factors_of(axes[softmax_axis])
    others = [factors_of(axis) for i, axis in enumerate(axes) if i != softmax_axis % len(axes)]
    if any(factor.role != keys for factor in key_axis):
        raise Unreadable("its softmax runs over something else than the keys of a product")
    rows, lead = _rows_and_lead(others, queries)
    heads = [f for axis in lead for f in axis if f.origin == "width"]
    if not heads and len(lead) >= 2:  # nothing tells: heads stand next to queries and keys
        heads = list(lead[-1])
    batch = tuple(f for axis in lead for f in axis if f not in heads)
    unknown = [factor for factor in batch if factor.origin == "unknown"]
    if unknown and not heads and examples and size_of(batch) not in examples:
        given = " or ".join(map(str, sorted(examples)))
        raise Unreadable(
            f"its scores have {size_of(batch)} maps where the model was given {given} examples, "
            "and it was not seen how heads were folded into them; choose the module in which they "
            "are split"
        )
    return Groups(batch, tuple(heads), rows, key_axis)


def _rows_and_lead(others: Sequence[Axis], queries: str) -> tuple[Axis, list[Axis]]:
    """The factors of the queries, and the axes before them; size 1 has no factors to tell it by.

    Heads stand among the queries where several query heads share one key head, and examples where
    the keys are the same for all of them.
    """
    of_queries = [f for axis in others for f in axis if f.role == queries]
    if not of_queries:
        single = [i for i, axis in enumerate(others) if not axis]
        return (), [axis for i, axis in enumerate(others) if i not in single[-1:]]
    heads = [f for f in of_queries if f.origin == "width"]
    rows = [f for f in of_queries if f not in heads] or heads
    shared = any(f.role == "lead" and f.origin != "width" for axis in others for f in axis)
    last = next(axis for axis in reversed(others) if any(f in rows for f in axis))
    if not shared or any(f.origin == "unknown" for f in rows):
        rows = [f for f in rows if f in last]
    lead = [tuple(f for f in axis if f not in rows) for axis in others]
    return tuple(rows), [
        axis for axis, whole_ in zip(lead, others, strict=True) if axis or not whole_
    ]


def arrange(x: Tensor, axes: Axes, groups: Sequence[Axis]) -> Tensor:
    """``x`` with one axis for each group of factors; 1 where it has none of them.

    Raises:
        Unreadable: ``x`` has an axis that belongs to no group.
    """
    axes = ((),) * (x.ndim - len(axes)) + axes[max(0, len(axes) - x.ndim) :]
    split = [factors_of(axis) for axis in axes]
    order = [factor for group in groups for factor in factors_of(group)]
    if len(groups) == x.ndim and all(
        n == 1 or factors == factors_of(group)
        for n, factors, group in zip(x.shape, split, groups, strict=True)
    ):
        return x
    present: list[Factor | None] = []
    sizes: list[int] = []
    for n, factors in zip(x.shape, split, strict=True):
        if n == 1:  # one entry that stands for all
            sizes.append(1)
            present.append(None)
        elif n == size_of(factors):
            sizes.extend(factor.size for factor in factors)
            present.extend(factors)
        else:
            raise Unreadable(f"an axis of {n} entries meets one of {size_of(factors)}")
    if any(factor is not None and factor not in order for factor in present):
        raise Unreadable("a mask, bias or tensor of it varies along an axis that the scores lack")
    x = x.reshape(sizes)
    kept = [i for i, factor in enumerate(present) if factor is not None]
    x = x.reshape([sizes[i] for i in kept])
    held = [present[i] for i in kept]
    x = x.permute([held.index(factor) for factor in order if factor in held])
    for i, factor in enumerate(order):
        if factor not in held:
            x = x.unsqueeze(i)
    merged, place = list(x.shape), 0
    shape = []
    for group in groups:
        factors = factors_of(group)
        seen = [factor in held for factor in factors]
        if any(seen) and not all(seen):
            merged[place : place + len(factors)] = [factor.size for factor in factors]
        shape.append(math.prod(merged[place : place + len(factors)]))
        place += len(factors)
    return x.expand(merged).reshape(shape)


# one rule for each family of operations


def regroup(axes: Axes, shape: Sequence[int]) -> Axes:
    """The same entries in the same order, cut into axes of other sizes."""
    if 0 in shape:
        kept = [axis for axis in axes if size_of(axis) != 1]
        wanted = [n for n in shape if n != 1]
        if [size_of(axis) for axis in kept] != wanted:
            raise Unreadable("it reshapes an empty tensor")
        found = iter(kept)
        return tuple(() if n == 1 else next(found) for n in shape)
    factors = [factor for axis in axes for factor in factors_of(axis)]
    grouped: list[Axis] = []
    for size in shape:
        axis: list[Factor] = []
        missing = size
        while missing > 1:
            factor = factors.pop(0)
            if missing % factor.size == 0:
                missing //= factor.size
            elif factor.size % missing == 0:
                factor, rest = factor.split(missing)
                factors.insert(0, rest)
                missing = 1
            else:
                raise Unreadable("a view cuts across its axes")
            axis.append(factor)
        grouped.append(tuple(axis))
    return tuple(grouped)


def _swap(axes: Axes, args: tuple[Any, ...]) -> Axes:
    one, other = int(args[0]), int(args[1])
    found = list(axes)
    found[one], found[other] = found[other], found[one]
    return tuple(found)


def _permute(axes: Axes, args: tuple[Any, ...]) -> Axes:
    dims = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    return tuple(axes[int(dim)] for dim in dims)


def _move(axes: Axes, args: tuple[Any, ...]) -> Axes:
    source, target = (list(a) if isinstance(a, (tuple, list)) else [a] for a in args[:2])
    n = len(axes)
    rest = [i for i in range(n) if i not in [s % n for s in source]]
    for place, moved in sorted(zip((t % n for t in target), source, strict=True)):
        rest.insert(place, moved % n)
    return tuple(axes[i] for i in rest)


_REORDERING: dict[str, Callable[[Axes, tuple[Any, ...]], Axes]] = {
    "transpose": _swap, "swapaxes": _swap, "swapdims": _swap, "transpose_": _swap,
    "permute": _permute, "movedim": _move, "moveaxis": _move,
    "mT": lambda axes, _: _swap(axes, (-1, -2)),
    "t": lambda axes, _: axes[::-1],
    "T": lambda axes, _: axes[::-1],
}  # fmt: skip


def _drop(axes: Axes, dim: int) -> Axes:
    return tuple(axis for i, axis in enumerate(axes) if i != dim % len(axes))


def _index(axes: Axes, index: Any, after: tuple[int, ...]) -> Axes:
    """After ``x[index]`` of numbers, slices, None and an ellipsis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    if Ellipsis not in parts:
        parts.append(Ellipsis)
    at = parts.index(Ellipsis)
    parts[at : at + 1] = [slice(None)] * (len(axes) - taken)
    rest = iter(axes)
    found: list[Axis] = []
    for part in parts:
        if part is None:
            found.append(())
        elif isinstance(part, slice):
            found.append(next(rest))
        elif isinstance(part, int):
            next(rest)
        elif isinstance(part, (list, tuple)) and all(isinstance(n, int) for n in part):
            found.append(next(rest))
        else:
            raise Unreadable("it picks entries by a tensor of positions")
    return _resize(tuple(found), after)


def _resize(axes: Axes, after: tuple[int, ...]) -> Axes:
    """Axes that keep their sizes stay; one of another size stays what it was, in new factors."""
    if len(axes) != len(after):
        raise Unreadable("an operation on it changes its axes in a way that is not known")
    changed = [i for i, axis in enumerate(axes) if size_of(axis) != after[i]]
    found = list(axes)
    for i in changed:
        old = factors_of(axes[i])
        origin = old[-1].origin if old else "copy"
        role = old[-1].role if old else ""
        found[i] = () if after[i] == 1 else (Factor(after[i], origin, role),)
    return tuple(found)
