"""How a comparison of two attentions is cut into tiles of heads x rows x keys.

Two cuts are made. First padding goes: for each example, rows that do not count and keys that no
counting row uses are left out before any product. What remains of an example is a :class:`Part`.
Then each part is cut into tiles that fit a cache. A tile has *whole* rows of keys, so that softmax
and divergence of a row need no second tile.

On an accelerator no padding is cut off, because reading a mask would wait for the device.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .comparison import Pair, Sides

Span = slice | Tensor
"""Positions along an axis: a range of them, or an index."""

# three buffers of a tile stay in the cache of one core while a head fits; a longer head is cut
# into rows, of which a matrix product wants many
CACHE_BYTES = 2 << 20
LONG_BYTES = 12 << 20
MIN_ROWS = 128
BUFFERS = 3


class Part(NamedTuple):
    """The part of one example that is computed, or of the whole batch with its heads in a row."""

    number: int | None  # of the example; None: the whole batch
    rows: Span
    keys: Span
    shape: tuple[int, int, int]  # heads, rows and keys in this part
    counted: Tensor | None  # (h or 1, rows, 1), where not every row counts for every head
    used: Sides[Tensor | None]  # the keys that each side uses, (h or 1, keys)


class Tile(NamedTuple):
    """Heads x rows x the leading keys of a part, in the part's own numbering."""

    part: Part
    heads: slice
    rows: slice
    keys: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the tile's scores."""
        heads, rows = self.heads.stop - self.heads.start, self.rows.stop - self.rows.start
        return heads, rows, self.keys

    @property
    def size(self) -> int:
        """How many scores it has."""
        return math.prod(self.shape)

    @property
    def row_span(self) -> Span:
        """The tile's rows in the numbering of the whole."""
        return subspan(self.part.rows, self.rows)

    @property
    def key_span(self) -> Span:
        """The tile's keys in the numbering of the whole."""
        return subspan(self.part.keys, slice(0, self.keys))

    @property
    def counted(self) -> Tensor | None:
        """The rows that count, broadcastable to (heads, rows, 1); None: all."""
        counted = self.part.counted
        return None if counted is None else of_heads(counted, self.heads)[:, self.rows]


def can_sync(device: torch.device) -> bool:
    """Whether the content of a tensor may decide what to do.

    An accelerator would have to finish all its work first, so there the answer is no.
    """
    return device.type == "cpu"


def parts(pair: Pair) -> list[Part]:
    """The parts that there are to compute; empty where no row counts."""
    (b, h, q, _), k = pair.student.query.shape, pair.student.key.shape[2]
    if not (b and h and q and k):
        return []
    device = pair.student.query.device
    counted = pair.counted()
    used = Sides(*(side.keep.keys_in_use(counted, device) for side in pair.sides))
    everything = counted is None and used.student is None and used.teacher is None
    if everything and _can_fold(pair):
        whole = (b * h, q, k)
        return [Part(None, slice(0, q), slice(0, k), whole, None, Sides(None, None))]
    cut = can_sync(device)
    row_spans = _spans(counted if cut else None, b, q)
    key_spans = _spans(_used_by_either(used) if cut else None, b, k)
    made = []
    for number, (rows, keys) in enumerate(zip(row_spans, key_spans, strict=True)):
        if rows is None or keys is None:
            continue
        counts = None if counted is None else _of_example(counted, number)[:, rows, None]
        seen = [None if x is None else _of_example(x, number)[:, keys] for x in used]
        if cut:  # a mask that keeps everything is dropped here, not asked in every tile
            counts = _unless_all(counts)
            seen = [_unless_all(x) for x in seen]
        shape = (h, span_length(rows, q), span_length(keys, k))
        made.append(Part(number, rows, keys, shape, counts, Sides(*seen)))
    return made


def tiles(pair: Pair, todo: Sequence[Part]) -> Iterator[Tile]:
    """Every part in tiles: heads outside, rows inside."""
    causal = pair.student.causal and pair.teacher.causal
    for part in todo:
        heads, rows = _tile_size(pair, part.shape)
        h, n, m = part.shape
        for head in range(0, h, heads):
            for start in range(0, n, rows):
                stop = min(n, start + rows)
                # where both sides are causal, no row of the tile sees a key behind its last row
                seen = _keys_up_to(part, stop) if causal else m
                if seen:
                    yield Tile(part, slice(head, min(h, head + heads)), slice(start, stop), seen)


def _tile_size(pair: Pair, shape: tuple[int, int, int]) -> tuple[int, int]:
    """How many heads and rows of a part make a tile."""
    h, n, m = shape
    score_bytes = BUFFERS * pair.dtype.itemsize
    if pair.mean:  # an average needs every head of both sides
        both = h + pair.teacher.query.shape[1]
        most = LONG_BYTES // (score_bytes * both) // m
        return h, even_size(n, max(1, min(n, most)))
    fitting = CACHE_BYTES // (score_bytes * n * m)
    if not fitting:
        most = LONG_BYTES // (score_bytes * m)
        return 1, even_size(n, max(min(MIN_ROWS, n), min(n, most)))
    # heads that share a key head on either side stay together: their keys' gradient is one sum
    unit = math.lcm(pair.student.sharing, pair.teacher.sharing)
    if fitting < unit:
        return 1, n
    return even_size(h // unit, fitting // unit) * unit, n


def kept_span(kept: Tensor | None, n: int) -> Span:
    """The kept ones of n positions, ``(n,)``: a range where they are neighbours, or an index."""
    if kept is None or n == 0:
        return slice(0, n)
    span = _spans(kept[None, None], 1, n)[0]
    return slice(0, 0) if span is None else span


def span_length(span: Span, whole: int) -> int:
    """How many positions of an axis a span has."""
    return len(range(whole)[span]) if isinstance(span, slice) else len(span)


def subspan(span: Span, part: slice) -> Span:
    """A part of a span's positions."""
    if isinstance(span, slice):
        return slice(span.start + part.start, span.start + part.stop)
    return span[part]


def even_size(whole: int, most: int) -> int:
    """The size of equal pieces of at most ``most``: no thin last one."""
    return -(-whole // -(-whole // most))


def of_heads(x: Tensor, heads: slice) -> Tensor:
    """The heads of a tensor that may have one for all."""
    return x if x.shape[0] == 1 else x[heads]


def of_part(x: Tensor, number: int | None) -> Tensor:
    """The example of a part, or the whole batch with its heads in a row."""
    return x.flatten(0, 1) if number is None else x[number]


def _of_example(x: Tensor, number: int) -> Tensor:
    """An example of a mask that may have one for all."""
    return x[number if x.shape[0] > 1 else 0]


def _keys_up_to(part: Part, stop: int) -> int:
    """How many of the part's keys lie no later than its row ``stop - 1``."""
    rows, keys = part.rows, part.keys
    last = rows.start + stop - 1 if isinstance(rows, slice) else int(rows[stop - 1])
    positions = range(keys.start, keys.stop) if isinstance(keys, slice) else keys.tolist()
    return bisect_right(positions, last)


def _can_fold(pair: Pair) -> bool:
    """Whether batch and heads are one axis in memory, and may be treated as one."""
    if pair.mean:
        return False
    return all(
        x.stride(0) == x.shape[1] * x.stride(1)
        for side in pair.sides
        for x in (side.query, side.key)
    )


def _spans(kept: Tensor | None, batch: int, n: int) -> list[Span | None]:
    """For each example the positions that a head keeps, of ``(b or 1, h, n)``; None: none."""
    if kept is None:
        return [slice(0, n)] * batch
    some = kept.any(1)
    first = some.to(torch.uint8).argmax(-1)
    last = n - 1 - some.flip(-1).to(torch.uint8).argmax(-1)
    spans: list[Span | None] = []
    found = torch.stack([some.sum(-1), first, last]).tolist()
    for row, (count, low, high) in enumerate(zip(*found, strict=True)):
        if count == 0:
            spans.append(None)
        elif high - low + 1 == count:
            spans.append(slice(low, high + 1))
        else:
            spans.append(some[row].nonzero()[:, 0])
    return spans * (batch if len(spans) == 1 else 1)


def _used_by_either(used: Sides[Tensor | None]) -> Tensor | None:
    student, teacher = used
    if student is None or teacher is None:
        return None
    return student.any(1, keepdim=True) | teacher.any(1, keepdim=True)


def _unless_all(kept: Tensor | None) -> Tensor | None:
    return None if kept is None or bool(kept.all()) else kept
