"""How a comparison of two attentions is cut into blocks of heads x rows x keys.

Padding is cut off before any work, per example: rows that do not count and keys that nobody uses
are in no block. On an accelerator nothing is cut, because looking at a mask would wait for it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._attention.keep import Keep, both_rows

Span = slice | Tensor
"""Positions along an axis: a range of them, or an index."""

# three buffers of a block stay in the cache of one core while a head fits; a longer head is cut
# into rows, of which a matrix product wants many
CACHE_BYTES = 2 << 20
LONG_BYTES = 12 << 20
MIN_ROWS = 128


class Side(NamedTuple):
    """One model's half: softened scores are ``(scale * query @ key.T + bias) / temperature``."""

    query: Tensor  # (b, h, q, d)
    key: Tensor  # (b, g, k, d)
    mask: Tensor | None
    bias: Tensor | None
    causal: bool
    scale: float
    temperature: float

    @property
    def factor(self) -> float:
        """What the products are multiplied by."""
        return self.scale / self.temperature

    @property
    def keep(self) -> Keep:
        """Which of its keys count."""
        b, h, q, _ = self.query.shape
        return Keep((b, h, q, self.key.shape[2]), self.mask, self.bias, self.causal)

    @property
    def sharing(self) -> int:
        """How many query heads read one key head."""
        return self.query.shape[1] // max(1, self.key.shape[1])


class Pair(NamedTuple):
    """Both halves, and the rows that may count: ``(b or 1, h or 1, q)``."""

    student: Side
    teacher: Side
    rows: Tensor | None
    mean: bool  # over heads

    @property
    def sides(self) -> tuple[Side, Side]:
        """Student, teacher."""
        return self.student, self.teacher

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: half precision is for storage."""
        tensors = [x for side in self.sides for x in (side.query, side.key)]
        double = any(x.dtype == torch.float64 for x in tensors)
        return torch.float64 if double else torch.float32

    @property
    def value_shape(self) -> tuple[int, int, int]:
        """One value for each row."""
        b, h, q, _ = self.student.query.shape
        return b, 1 if self.mean else h, q

    def counted(self) -> Tensor | None:
        """The rows that count: kept, and with a key left to the teacher; None: all."""
        rows = both_rows(self.teacher.keep.rows_with_keys(self.teacher.query.device), self.rows)
        if rows is not None and self.mean:
            rows = rows.all(1, keepdim=True)
        return rows if rows is None else rows.expand(*rows.shape[:2], self.value_shape[2])


class Example(NamedTuple):
    """The part of one example (None: of the whole batch, its heads in a row) that is computed."""

    number: int | None
    rows: Span
    keys: Span
    shape: tuple[int, int, int]  # heads, rows and keys in this part
    counted: Tensor | None  # (h or 1, rows, 1), where not every row counts for every head
    used: tuple[Tensor | None, Tensor | None]  # keys that student and teacher use, (h or 1, keys)


class Block(NamedTuple):
    """Heads x rows x the leading keys of an example, in the example's own numbering."""

    example: Example
    heads: slice
    rows: slice
    keys: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the block's scores."""
        heads, rows = self.heads.stop - self.heads.start, self.rows.stop - self.rows.start
        return heads, rows, self.keys

    @property
    def size(self) -> int:
        """How many scores it has."""
        return math.prod(self.shape)


def examples(pair: Pair) -> list[Example]:
    """What there is to compute."""
    (b, h, q, _), k = pair.student.query.shape, pair.student.key.shape[2]
    if not (b and h and q and k):
        return []
    device = pair.student.query.device
    counted = pair.counted()
    used = [side.keep.keys_in_use(counted, device) for side in pair.sides]
    if counted is None and used[0] is None and used[1] is None and _folds(pair):
        return [Example(None, slice(0, q), slice(0, k), (b * h, q, k), None, (None, None))]
    cut = may_look(device)
    rows = _spans(counted if cut else None, b, q)
    keys = _spans(_either(used) if cut else None, b, k)
    made = []
    for number, (row, key) in enumerate(zip(rows, keys, strict=True)):
        if row is None or key is None:
            continue
        counts = None if counted is None else _of_example(counted, number)[:, row, None]
        seen = [None if x is None else _of_example(x, number)[:, key] for x in used]
        if cut:  # what is whole needs no second look
            counts = None if counts is None or bool(counts.all()) else counts
            seen = [None if x is None or bool(x.all()) else x for x in seen]
        shape = (h, length(row, q), length(key, k))
        made.append(Example(number, row, key, shape, counts, (seen[0], seen[1])))
    return made


def may_look(device: torch.device) -> bool:
    """Whether a mask's content may decide what to do: on an accelerator that would wait for it."""
    return device.type == "cpu"


def blocks(pair: Pair, parts: Sequence[Example]) -> Iterator[Block]:
    """Every example in blocks: heads outside, rows inside."""
    itemsize = pair.dtype.itemsize
    unit = math.lcm(pair.student.sharing, pair.teacher.sharing)
    causal = pair.student.causal and pair.teacher.causal
    for part in parts:
        h, n, m = part.shape
        if pair.mean:  # an average needs every head of both sides
            widest = LONG_BYTES // (itemsize * 3 * (h + pair.teacher.query.shape[1]))
            at_once, step = h, max(1, min(n, widest // m))
        elif n * m * 3 * itemsize <= CACHE_BYTES:
            fitting, step = CACHE_BYTES // (n * m * 3 * itemsize), n
            at_once = _even(h // unit, fitting // unit) * unit if fitting >= unit else 1
        else:
            at_once, step = 1, max(min(MIN_ROWS, n), min(n, LONG_BYTES // (3 * itemsize * m)))
        step = -(-n // -(-n // step))  # equal blocks: no thin last one
        for head in range(0, h, at_once):
            for start in range(0, n, step):
                stop = min(n, start + step)
                seen = _seen(part, stop) if causal else m
                if seen:
                    yield Block(part, slice(head, min(h, head + at_once)), slice(start, stop), seen)


def length(span: Span, whole: int) -> int:
    """How many positions a span has."""
    return len(range(whole)[span]) if isinstance(span, slice) else len(span)


def at(span: Span, part: slice) -> Span:
    """A part of a span's positions."""
    if isinstance(span, slice):
        return slice(span.start + part.start, span.start + part.stop)
    return span[part]


def positions(span: Span) -> range | list[int]:
    """The positions of a span, in order."""
    return range(span.start, span.stop) if isinstance(span, slice) else span.tolist()


def _seen(part: Example, stop: int) -> int:
    """How many of the part's keys lie no later than its row ``stop - 1``."""
    last = part.rows.start + stop - 1 if isinstance(part.rows, slice) else int(part.rows[stop - 1])
    return bisect_right(positions(part.keys), last)


def _folds(pair: Pair) -> bool:
    """Whether batch and heads are one axis in memory, and may be treated as one."""
    if pair.mean:
        return False
    return all(
        x.stride(0) == x.shape[1] * x.stride(1)
        for side in (pair.student, pair.teacher)
        for x in (side.query, side.key)
    )


def _spans(kept: Tensor | None, batch: int, n: int) -> list[Span | None]:
    """For each example the kept positions; None where there are none."""
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


def _either(used: Sequence[Tensor | None]) -> Tensor | None:
    one, other = used
    if one is None or other is None:
        return None
    return one.any(1, keepdim=True) | other.any(1, keepdim=True)


def _of_example(x: Tensor, number: int) -> Tensor:
    return x[number if x.shape[0] > 1 else 0]


def _even(whole: int, most: int) -> int:
    """At most ``most`` at a time, all times alike."""
    return -(-whole // -(-whole // most))
