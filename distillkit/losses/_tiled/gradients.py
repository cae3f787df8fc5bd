"""The gradients of queries and keys, summed from the slopes of tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .comparison import Gradients, Leaves, Side
from .scores import TileScores, grouped
from .tiling import Part, Span, Tile, of_part


class _KeySum(NamedTuple):
    """The gradient of the keys that some heads of a part share, while tiles are added to it."""

    total: Tensor  # (key heads, keys, d), in the dtype of the computation
    number: int | None  # of the part
    heads: slice
    target: Tensor | None  # where the sum goes once it is complete; None: it is there already
    keys: Span


class GradientSums:
    """The gradient to one side's queries and keys, gathered from tiles.

    With slopes G, row weights r and scores ``factor * Q K^T``, a tile of rows is all that there is
    to say about its queries, ``dQ = factor * r * G K``, but one summand of ``dK = factor * G^T (r
    Q)``. The loop goes over all rows of a key head before the next, so one sum is open at a time.

    Args:
        side: the side.
        todo: the parts that are computed; all others have gradient 0.
        wanted: whose gradient is asked for.
        computed: the dtype of the computation.
        stored: the dtype of the gradients; None: that of the tensors.
        into: tensors to write to, instead of new ones.
    """

    def __init__(
        self,
        side: Side,
        todo: list[Part],
        wanted: Leaves[bool],
        computed: torch.dtype,
        stored: torch.dtype | None = None,
        into: Gradients | None = None,
    ) -> None:
        into = into or Leaves(None, None, None)
        self._query = self._key = None
        if wanted.query:
            made = _new(side.query, stored) if into.query is None else into.query
            self._query = _zero_outside(made, {part.number: part.rows for part in todo})
        if wanted.key:
            made = _new(side.key, stored) if into.key is None else into.key
            self._key = _zero_outside(made, {part.number: part.keys for part in todo})
        self._computed = computed
        self._causal = side.causal
        self._open: _KeySum | None = None

    def add(self, scores: TileScores, tile: Tile, slopes: Tensor, weights: Tensor | float) -> None:
        """A tile's share: ``slopes`` of its scores, times a weight for each row, (heads, rows, 1).

        The weights hold the factor of the products. They scale rows of d, never the map.
        """
        query, key = scores.queries(tile), scores.keys(tile)
        folded = grouped(slopes, key)
        if self._query is not None:
            self._write_query(self._query, tile, query, key, folded, weights)
        if self._key is not None:
            total, beta = self._key_sum(self._key, scores, tile, key)
            if isinstance(weights, float):
                weighted, alpha = grouped(query, key), weights
            else:
                weighted, alpha = grouped(query * weights, key), 1.0
            torch.baddbmm(total, folded.mT, weighted, beta=beta, alpha=alpha, out=total)

    def close(self) -> Gradients:
        """All that was gathered."""
        self._flush()
        return Leaves(self._query, self._key, None)

    def _write_query(
        self,
        gradient: Tensor,
        tile: Tile,
        query: Tensor,
        key: Tensor,
        folded: Tensor,
        weights: Tensor | float,
    ) -> None:
        target = of_part(gradient, tile.part.number)[tile.heads]
        span = tile.row_span
        is_plain = folded.shape[0] == target.shape[0] and target.dtype == key.dtype
        if isinstance(weights, float) and is_plain and isinstance(span, slice):
            rows = target[:, span]  # the product goes where it belongs
            torch.baddbmm(rows, folded, key, beta=0, alpha=weights, out=rows)
        else:
            product = torch.bmm(folded, key).view(query.shape).mul_(weights)
            target[:, span] = product.to(target.dtype)

    def _key_sum(
        self, gradient: Tensor, scores: TileScores, tile: Tile, key: Tensor
    ) -> tuple[Tensor, float]:
        """The sum that a tile's keys go into, and the factor of what it holds: 0 if it is new."""
        part, heads = tile.part, scores.key_heads(tile)
        beta = 1.0
        if self._open is None or (self._open.number, self._open.heads) != (part.number, heads):
            self._flush()
            self._open = self._start(gradient, part, heads, key)
            if tile.keys < part.shape[2] or self._causal:  # later rows see more keys
                self._open.total.zero_()
            else:
                beta = 0.0
        return self._open.total[:, : tile.keys], beta

    def _start(self, gradient: Tensor, part: Part, heads: slice, key: Tensor) -> _KeySum:
        target = of_part(gradient, part.number)[heads]
        if target.dtype == self._computed and isinstance(part.keys, slice):
            return _KeySum(target[:, part.keys], part.number, heads, None, part.keys)
        total = key.new_empty(target.shape[0], part.shape[2], key.shape[-1])
        return _KeySum(total, part.number, heads, target, part.keys)

    def _flush(self) -> None:
        """Write the sum that is open, rounded once, to where it belongs."""
        if self._open is not None and self._open.target is not None:
            target = self._open.target
            target[:, self._open.keys] = self._open.total.to(target.dtype)
        self._open = None


def common_weights(weights: Tensor, counted: Tensor | None) -> Tensor | None:
    """The weight that all counting rows of a group have, ``(..., rows) -> (...)``.

    This is the guess that the forward takes: it sums gradients over rows as if every row weighed
    1, and the sum can be multiplied by the weight afterwards if the rows have one in common.

    Returns:
        0 for a group in which no row counts; None where a group has unequal weights.
    """
    low = high = weights
    if counted is not None:
        low = torch.where(counted, weights, torch.inf)
        high = torch.where(counted, weights, -torch.inf)
    least, most = low.amin(-1), high.amax(-1)
    empty = least > most
    if not bool(((least == most) | empty).all()):
        return None
    return torch.where(empty, 0, least)


def _new(like: Tensor, dtype: torch.dtype | None) -> Tensor:
    return torch.empty(like.shape, dtype=dtype or like.dtype, device=like.device)


def _zero_outside(made: Tensor, spans: dict[int | None, Span]) -> Tensor:
    """The same tensor, 0 wherever no tile will write; ``spans`` by the number of the part."""
    if None in spans:  # the whole batch is one part
        return made
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
