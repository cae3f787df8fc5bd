"""Divergences of two attentions and their gradients, one tile of scores at a time.

A tile's value and its share of the queries' and keys' gradients are made while the tile is in
cache, and no map of queries x keys is ever whole. docs/explanation/blockwise.md derives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._divergence import log_softmax
from . import tiling
from .comparison import (
    NONE_WANTED,
    ForBackward,
    Forward,
    Gradients,
    Leaves,
    Pair,
    Side,
    Sides,
    Wanted,
)
from .divergences import (
    Compared,
    buffers_for,
    can_compare_in_place,
    compare_in_place,
    compare_logs,
    lacking_rows,
)
from .gradients import GradientSums, common_weights
from .scores import TileScores
from .tiling import Part, Tile, of_heads, of_part, parts, tiles

NO_SECOND_DERIVATIVE = (
    "a blockwise attention loss has no second derivative: its gradient is computed in "
    'closed form; method="dense" can be differentiated as often as you like'
)


def forward(pair: Pair, wanted: Wanted, keep: ForBackward) -> Forward:
    """Every row's value, and what is to be kept for the backward.

    ``keep="maps"`` keeps the slopes of the scores. ``"guess"`` keeps the student's gradients for a
    weight of 1 in every row, which :func:`scale_guess` settles.
    """
    work = _Work(pair)
    value = torch.zeros(pair.value_shape, dtype=pair.dtype, device=pair.student.query.device)
    maps = Sides(*(
        value.new_empty(work.map_size(side) if keep == "maps" and any(asked) else 0)
        for side, asked in zip(pair.sides, wanted, strict=True)
    ))  # fmt: skip
    asked = wanted.student if keep == "guess" else NONE_WANTED
    sums = GradientSums(pair.student, work.parts, asked, pair.dtype, stored=pair.dtype)
    comparer = _Comparer(pair, wanted, work.tiles)
    for tile, scores, room in work.walk(maps):
        compared = comparer.compare(tile, scores, room, slopes=bool(keep))
        rows = compared.rows
        weights: Tensor | float = pair.student.factor
        counted = tile.counted
        if counted is not None:
            rows = torch.where(counted, rows, 0)
            weights = torch.where(counted, weights, rows.new_zeros(()))
        of_heads(of_part(value, tile.part.number), tile.heads)[:, tile.row_span] = rows[..., 0]
        if any(asked) and compared.slopes.student is not None:
            sums.add(scores.student, tile, compared.slopes.student, weights)
    return Forward(value, maps, sums.close())


def backward(
    upstream: Tensor,
    pair: Pair,
    wanted: Wanted,
    maps: Sides[Tensor] | None = None,
    into: Gradients | None = None,
) -> Sides[Gradients]:
    """The gradients to both sides; None where unwanted.

    ``maps`` are what :func:`forward` kept; without any, the scores are computed again. The
    student's gradients are written ``into`` tensors of the computation's dtype, where they are
    given.
    """
    work = _Work(pair)
    if maps is not None and not any(x.numel() for x in maps):
        maps = None
    stored = None if into is None else pair.dtype
    sums = Sides(
        GradientSums(pair.student, work.parts, wanted.student, pair.dtype, stored, into),
        GradientSums(pair.teacher, work.parts, wanted.teacher, pair.dtype),
    )
    comparer = _Comparer(pair, wanted, [] if maps else work.tiles)
    weights = upstream.to(pair.dtype)[..., None]
    for tile, scores, kept in work.walk(maps):
        # the pullback needs the slopes alone: those that were kept, or the tile once more
        slopes = kept if maps else comparer.compare(tile, scores, kept, slopes=True).slopes
        weight = of_heads(of_part(weights, tile.part.number), tile.heads)[:, tile.row_span]
        if tile.counted is not None:
            weight = torch.where(tile.counted, weight, 0)
        each = zip(pair.sides, wanted, sums, scores, slopes, strict=True)
        for side, asked, total, one, slope in each:
            if slope is not None and any(asked):
                total.add(one, _of_side(pair, tile, side), slope, weight * side.factor)
    return Sides(*(total.close() for total in sums))


def scale_guess(upstream: Tensor, pair: Pair, guess: Gradients) -> Leaves[bool]:
    """Turn gradients guessed for equal weights into those for ``upstream``, in place.

    Rows of queries scale one by one; a key's gradient sums over rows, so it scales only where the
    rows of all heads that read it weigh the same. Returns what has to be computed again: nothing,
    or everything, and then nothing was changed.
    """
    query, key, _ = guess
    weights = upstream.to(pair.dtype)
    if not weights.numel():
        return NONE_WANTED
    if key is not None:
        b, h, _ = weights.shape
        groups = (b, min(h, key.shape[1]), -1)  # averaged heads have one weight
        counted = pair.counted()
        if counted is not None:
            counted = counted.expand(weights.shape).reshape(groups)
        common = common_weights(weights.reshape(groups), counted)
        if common is None:
            return Leaves(query is not None, key is not None, bias=False)
        key.mul_(common[..., None, None])
    if query is not None:
        query.mul_(weights[..., None])
    return NONE_WANTED


class _Work:
    """The tiles of a comparison, in the order in which they are computed."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.parts = parts(pair)
        self.tiles = list(tiles(pair, self.parts))

    def map_size(self, side: Side) -> int:
        """How many scores of a side are computed."""
        return sum(_of_side(self._pair, tile, side).size for tile in self.tiles)

    def walk(
        self, maps: Sides[Tensor] | None
    ) -> Iterator[tuple[Tile, Sides[TileScores], Sides[Tensor | None]]]:
        """Every tile, both sides' scores of it, and its place in the maps that are kept."""
        pair = self._pair
        places = Sides(*(_Places(x) for x in maps or (None, None)))
        part: Part | None = None
        for tile in self.tiles:
            if tile.part is not part:
                part = tile.part
                sides = zip(pair.sides, part.used, strict=True)
                scores = Sides(*(TileScores(side, part, used, pair.dtype) for side, used in sides))
            own = (_of_side(pair, tile, side).shape for side in pair.sides)
            room = Sides(*(x.take(shape) for x, shape in zip(places, own, strict=True)))
            yield tile, scores, room


class _Places:
    """A map that is kept as its tiles, one after another."""

    def __init__(self, flat: Tensor | None) -> None:
        self._flat = flat if flat is not None and flat.numel() else None
        self._start = 0

    def take(self, shape: tuple[int, int, int]) -> Tensor | None:
        """The next tile's place; None where the map is not kept."""
        if self._flat is None:
            return None
        start = self._start
        self._start += math.prod(shape)
        return self._flat[start : self._start].view(shape)


class _Comparer:
    """Compares tiles: in place in a few buffers where that is enough, with all logs otherwise."""

    def __init__(self, pair: Pair, wanted: Wanted, todo: Sequence[Tile]) -> None:
        self._pair = pair
        self._wanted = Sides(*map(any, wanted))
        self._keep_the_same = _surely_keep_the_same(pair)
        fits = can_compare_in_place(pair.kind, keep_the_same=self._keep_the_same)
        self._in_place = fits and not pair.mean and not self._wanted.teacher
        largest = max([0, *(tile.size for tile in todo)])
        device = pair.student.query.device
        self._buffers = [
            torch.empty(largest if self._in_place else 0, dtype=pair.dtype, device=device)
            for _ in range(buffers_for(pair.kind))
        ]

    def compare(
        self,
        tile: Tile,
        scores: Sides[TileScores],
        room: Sides[Tensor | None],
        *,
        slopes: bool,
    ) -> Compared:
        """One tile; the slopes are written into ``room`` where it is given."""
        if self._in_place:
            return self._compare_in_place(tile, scores, room.student, slopes=slopes)
        logs = Sides(*map(self._logs, scores, self._pair.sides, [tile, tile]))
        wanted = self._wanted if slopes else Sides(student=False, teacher=False)
        compared = compare_logs(self._pair.kind, logs, wanted, mean=self._pair.mean)
        for target, slope in zip(room, compared.slopes, strict=True):
            if target is not None and slope is not None:
                target.copy_(slope)
        return compared

    def _compare_in_place(
        self, tile: Tile, scores: Sides[TileScores], room: Tensor | None, *, slopes: bool
    ) -> Compared:
        buffers = [x[: tile.size].view(tile.shape) for x in self._buffers]
        if room is not None:
            buffers[0] = room
        for side, out in zip(scores, buffers, strict=False):
            side.write_scores(tile, out)
        lacking = None
        if not self._keep_the_same:
            lacking = lacking_rows(Sides(*(side.keep(tile) for side in scores)))
        return compare_in_place(self._pair.kind, buffers, lacking, slopes=slopes)

    def _logs(self, scores: TileScores, side: Side, tile: Tile) -> Tensor:
        """One side's log-probabilities, of all its heads if these are averaged."""
        own = _of_side(self._pair, tile, side)
        out = torch.empty(own.shape, dtype=self._pair.dtype, device=side.query.device)
        scores.write_products(own, out)
        bias = scores.bias(own)
        if bias is not None:
            out += bias
        return log_softmax(out, scores.keep(own), 1.0)


def _of_side(pair: Pair, tile: Tile, side: Side) -> Tile:
    """The tile with a side's own heads, which differ only where they are averaged."""
    return tile._replace(heads=slice(0, side.query.shape[1])) if pair.mean else tile


def _surely_keep_the_same(pair: Pair) -> bool:
    """Whether both sides keep the same entries; on an accelerator, only what needs no reading."""
    student, teacher = (side.keep for side in pair.sides)
    if student.causal != teacher.causal:
        return False
    masks = zip((student.mask, student.bias), (teacher.mask, teacher.bias), strict=True)
    return all(_are_equal(mine, theirs) for mine, theirs in masks)


def _are_equal(mine: Tensor | None, theirs: Tensor | None) -> bool:
    if mine is theirs:
        return True
    if mine is None or theirs is None or mine.is_floating_point():
        return False
    return tiling.can_sync(mine.device) and torch.equal(mine, theirs)
