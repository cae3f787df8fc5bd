"""One side of a comparison, block by block: its scores, and the gradient that returns to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .._attention.keep import both, is_kept
from . import _blocks
from ._blocks import Block, Example, Side, Span, at

DROPPED = -1e38  # for a dropped score: its power is 0, and no difference of two is NaN
LOWEST = -1e37  # no bias of a kept score goes below


class Half:
    """One side of one example, cut to the rows and keys that are computed.

    Args:
        side: the whole side.
        part: the example.
        used: the part's keys that this side uses, ``(h or 1, keys)``; None: all of them.
        dtype: what is computed in.
    """

    def __init__(self, side: Side, part: Example, used: Tensor | None, dtype: torch.dtype) -> None:
        self.side, self._part, self._used, self._dtype = side, part, used, dtype
        self._query = _cut(side.query, part.number, part.rows)
        self._key = _cut(side.key, part.number, part.keys)
        self._cached: tuple[slice, Tensor] | None = None
        self._whole = not side.keep.parts and not side.causal
        self._by_row = side.keep.by_row

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self._query.device

    def queries(self, block: Block) -> Tensor:
        """``(heads, rows, d)``; 0 where a row does not count, whatever it held."""
        query = self._query[block.heads, block.rows]
        if query.dtype != self._dtype:
            query = query.to(self._dtype)
        counted = self._part.counted
        if counted is None:
            return query
        return torch.where(of_heads(counted, block.heads)[:, block.rows], query, 0)

    def keys(self, block: Block) -> Tensor:
        """``(key heads, keys, d)``; 0 for a key that nobody uses, whatever it held."""
        heads = self.key_heads(block)
        if self._cached is None or self._cached[0] != heads:
            key = self._key[heads].to(self._dtype)
            if self._used is not None:
                used = self._used
                if used.shape[0] > 1:
                    used = used.view(-1, self.side.sharing, used.shape[-1]).any(1)
                key = torch.where(of_heads(used, heads)[..., None], key, 0)
            self._cached = heads, key
        return self._cached[1][:, : block.keys]

    def key_heads(self, block: Block) -> slice:
        """The key heads that a block's heads read."""
        return slice(
            block.heads.start // self.side.sharing, -(-block.heads.stop // self.side.sharing)
        )

    def products(self, block: Block, out: Tensor) -> None:
        """The block's scores without bias or mask, into ``out`` (heads, rows, keys)."""
        query, key = self.queries(block), self.keys(block)
        folded, groups = grouped(query, key), grouped(out, key)
        torch.baddbmm(groups, folded, key.mT, beta=0, alpha=self.side.factor, out=groups)

    def keep(self, block: Block) -> Tensor | None:
        """The block's kept entries, broadcastable to (heads, rows, keys); None: all."""
        if self._whole:
            return None
        if not self._by_row:
            keep = self._keep_of_every_row
            return None if keep is None else of_heads(keep, block.heads)
        part = block.example
        rows, keys = at(part.rows, block.rows), at(part.keys, slice(0, block.keys))
        return self._keep(block.heads, rows, keys)

    def bias(self, block: Block) -> Tensor | None:
        """The block's softened bias, broadcastable to (heads, rows, keys), where there is any."""
        if self._whole:
            return None
        if not self._by_row:
            bias = self._bias_of_every_row
            return None if bias is None else of_heads(bias, block.heads)
        part = block.example
        rows, keys = at(part.rows, block.rows), at(part.keys, slice(0, block.keys))
        return self._bias(block.heads, rows, keys)

    def added(self, block: Block) -> Tensor | None:
        """What is added to the products: the bias, and :data:`DROPPED` where nothing is kept."""
        if self._whole:
            return None
        if not self._by_row:
            added = self._added_to_every_row
            return None if added is None else of_heads(added, block.heads)
        return self._added(self.keep(block), self.bias(block))

    @cached_property
    def _keep_of_every_row(self) -> Tensor | None:
        keep = self._keep(slice(0, self.side.query.shape[1]), self._part.rows, self._part.keys)
        if keep is not None and _blocks.may_look(keep.device) and bool(keep.all()):
            return None
        return keep

    @cached_property
    def _bias_of_every_row(self) -> Tensor | None:
        bias = self._bias(slice(0, self.side.query.shape[1]), self._part.rows, self._part.keys)
        if bias is None:
            return None
        keep = self._keep_of_every_row
        bias = bias if keep is None else torch.where(keep, bias, 0)
        return None if _blocks.may_look(bias.device) and not bool(bias.any()) else bias

    @cached_property
    def _added_to_every_row(self) -> Tensor | None:
        return self._added(self._keep_of_every_row, self._bias_of_every_row)

    def _added(self, keep: Tensor | None, bias: Tensor | None) -> Tensor | None:
        if keep is None:
            return bias
        if bias is None:
            zeros = torch.zeros(keep.shape, dtype=self._dtype, device=keep.device)
            return zeros.masked_fill_(~keep, DROPPED)
        return torch.where(keep, bias, DROPPED)

    def _bias(self, heads: slice, rows: Span, keys: Span) -> Tensor | None:
        if self.side.bias is None:
            return None
        bias = _part(self.side.bias, self._part.number, heads, rows, keys).to(self._dtype)
        return (bias / self.side.temperature).clamp_min(LOWEST)

    def _keep(self, heads: slice, rows: Span, keys: Span) -> Tensor | None:
        keep: Tensor | None = None
        for part in self.side.keep.parts:
            keep = both(keep, is_kept(_part(part, self._part.number, heads, rows, keys)))
        if self.side.causal:
            device = self.side.query.device
            past = _indices(keys, device) <= _indices(rows, device)[:, None]
            keep = past[None] if keep is None else keep & past
        return keep


class Gradient:
    """The gradient to one side's queries and keys, gathered from blocks.

    Args:
        side: the side.
        parts: the examples that are computed; all others have gradient 0.
        wanted: whether of the queries, and of the keys.
        dtypes: what it is stored in, and what it is computed in.
        into: tensors to write to, instead of new ones.
    """

    def __init__(
        self,
        side: Side,
        parts: list[Example],
        wanted: tuple[bool, bool],
        dtypes: tuple[torch.dtype, torch.dtype],
        into: Sequence[Tensor | None] = (None, None),
    ) -> None:
        stored, self._computed = dtypes
        self.query, self.key = (
            _padded(torch.empty(like.shape, dtype=stored, device=like.device)
                    if given is None else given, parts, axis) if some else None
            for like, given, axis, some in zip(
                (side.query, side.key), into, ("rows", "keys"), wanted, strict=True
            )
        )  # fmt: skip
        self._causal = side.causal
        self._group: tuple[int | None, int] | None = None
        self._sum: Tensor | None = None
        self._flush: tuple[Tensor, Span] | None = None

    def add(self, half: Half, block: Block, slopes: Tensor, weights: Tensor | float) -> None:
        """One block's: ``slopes`` of the scores, times a weight for each row, (heads, rows, 1).

        The weights hold the factor of the products; they scale rows of d, never the map.
        """
        query, key = half.queries(block), half.keys(block)
        folded = grouped(slopes, key)
        same = weights if isinstance(weights, float) else None
        if self.query is not None:
            target = example_of(self.query, block.example.number)[block.heads]
            span = at(block.example.rows, block.rows)
            if (
                same is not None
                and folded is slopes
                and isinstance(span, slice)
                and target.dtype == key.dtype
            ):
                rows = target[:, span]
                torch.baddbmm(rows, folded, key, beta=0, alpha=same, out=rows)
            else:
                part = torch.bmm(folded, key).view(query.shape).mul_(weights)
                target[:, span] = part.to(target.dtype)
        if self.key is not None:
            beta = self._open(half, block, key)
            assert self._sum is not None
            keys = self._sum[:, : block.keys]
            weighted = grouped(query if same is not None else query * weights, key)
            alpha = 1.0 if same is None else same
            torch.baddbmm(keys, folded.mT, weighted, beta=beta, alpha=alpha, out=keys)

    def close(self) -> None:
        """Write what is still being summed."""
        if self._flush is not None:
            target, span = self._flush
            assert self._sum is not None
            target[:, span] = self._sum.to(target.dtype)
        self._group = self._sum = self._flush = None

    def _open(self, half: Half, block: Block, key: Tensor) -> float:
        """Make ready the sum over the rows and heads that share these keys: 0 if it is new."""
        part, heads = block.example, half.key_heads(block)
        if self._group == (part.number, heads.start):
            return 1.0
        self.close()
        assert self.key is not None
        target = example_of(self.key, part.number)[heads]
        if target.dtype == self._computed and isinstance(part.keys, slice):
            self._sum = target[:, part.keys]
        else:
            self._sum = key.new_empty(target.shape[0], part.shape[2], key.shape[-1])
            self._flush = target, part.keys
        self._group = part.number, heads.start
        if block.keys < part.shape[2] or self._causal:  # later rows see more keys
            self._sum.zero_()
            return 1.0
        return 0.0


def grouped(x: Tensor, key: Tensor) -> Tensor:
    """Query heads that share a key head, ``(heads, rows, .) -> (key heads, heads x rows, .)``."""
    heads = key.shape[0]
    return x if x.shape[0] == heads else x.reshape(heads, -1, x.shape[-1])


def of_heads(x: Tensor, heads: slice) -> Tensor:
    """The heads of a tensor that may have one for all."""
    return x if x.shape[0] == 1 else x[heads]


def example_of(x: Tensor, number: int | None) -> Tensor:
    return x.flatten(0, 1) if number is None else x[number]


def _cut(x: Tensor, number: int | None, span: Span) -> Tensor:
    """``(b, h, n, d)`` -> the example's ``(h, span, d)``; a view where the span is a range."""
    return example_of(x, number)[:, span]


def _part(x: Tensor, number: int | None, heads: slice, rows: Span, keys: Span) -> Tensor:
    """A block of a mask or bias, each axis of which is 1 or whole."""
    x = x[number if number is not None and x.shape[0] > 1 else 0]
    x = of_heads(x, heads)
    x = x[:, rows] if x.shape[1] > 1 else x
    return x[:, :, keys] if x.shape[2] > 1 else x


def _indices(span: Span, device: torch.device) -> Tensor:
    if isinstance(span, slice):
        return torch.arange(span.start, span.stop, device=device)
    return span


def _padded(made: Tensor, parts: list[Example], axis: str) -> Tensor:
    """0 wherever no block will write."""
    if parts and parts[0].number is None:
        return made
    spans = {part.number: getattr(part, axis) for part in parts}
    for number, target in enumerate(made):
        span = spans.get(number)
        if not isinstance(span, slice):
            target.zero_()
            continue
        if span.start:
            target[:, : span.start] = 0
        if span.stop < target.shape[1]:
            target[:, span.stop :] = 0
    return made
