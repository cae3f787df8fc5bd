"""Divergences of two attentions as launches of kernels: what the operators run on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..comparison import (
    STATISTICS,
    ForBackward,
    Forward,
    Gradients,
    Leaves,
    Pair,
    Side,
    Sides,
    Wanted,
)
from . import slopes, values
from .geometry import Geometry, Pass, block_of, candidates
from .launch import Launch

NO_SECOND_DERIVATIVE = (
    "a fused attention loss has no second derivative: its gradient is computed in closed form; "
    'method="dense" can be differentiated as often as you like'
)

KINDS = {"kl": 0, "reverse": 1, "jsd": 2}
FAR = 2**31  # 32-bit addresses within a head


class KernelSide(NamedTuple):
    """One side as the kernels read it; strides are of (b, h, n), and of (b, h, q, k) for a map."""

    query: Tensor
    query_strides: tuple[int, ...]
    key: Tensor
    key_strides: tuple[int, ...]
    used: Tensor | None
    used_strides: tuple[int, ...]
    mask: Tensor | None
    mask_strides: tuple[int, ...]
    bias: Tensor | None
    bias_strides: tuple[int, ...]
    factor: float  # of the products, in base 2
    floor: float  # a bias at or below it drops its key
    soften: float  # factor of the bias, in base 2
    keys: int  # a causal side's rows see no more than these
    sharing: int  # query heads for each key head


def forward(pair: Pair, wanted: Wanted, keep: ForBackward) -> Forward:  # noqa: ARG001
    """Every row's value, and the statistics of the rows in place of the student's map."""
    value = torch.zeros(pair.value_shape, dtype=pair.dtype, device=pair.student.query.device)
    statistics = value.new_zeros(STATISTICS * value.numel())
    for launch in value_launches(pair, value, statistics):
        launch.run(value)
    return Forward(value, Sides(statistics, value.new_empty(0)), Leaves(None, None, None))


def backward(
    upstream: Tensor,
    pair: Pair,
    wanted: Wanted,
    maps: Sides[Tensor] | None = None,
    into: Gradients | None = None,  # noqa: ARG001 (nothing is guessed on a GPU)
) -> Sides[Gradients]:
    """The gradients to both sides; None where unwanted."""
    assert maps is not None
    # the kernels write every gradient whole, if there is a score at all
    make = torch.empty if pair.student.query.numel() and pair.student.key.numel() else torch.zeros
    found = Sides(*(
        Leaves(*(make(x.shape, dtype=x.dtype, device=x.device)
                 if asked and x is not None else None
                 for x, asked in zip(side.leaves, some, strict=True)))
        for side, some in zip(pair.sides, wanted, strict=True)
    ))  # fmt: skip
    weights = upstream.to(torch.float32).contiguous()
    for launch in slope_launches(pair, maps.student, weights, found):
        launch.run(weights)
    return found


def scale_guess(upstream: Tensor, pair: Pair, guess: Gradients) -> Leaves[bool]:  # noqa: ARG001
    """Nothing is guessed on a GPU, where looking at the weights would wait for the device."""
    raise AssertionError("the kernels guess no gradients")


def value_launches(
    pair: Pair,
    value: Tensor,
    statistics: Tensor,
    tile: Geometry | None = None,
    *,
    hip: bool | None = None,
) -> Iterator[Launch]:
    """The launches of the forward; ``hip`` for AMD, None for the GPU that torch was built for."""
    if not value.numel() or not pair.student.key.shape[2]:
        return
    call = _Call(pair, hip=torch.version.hip is not None if hip is None else hip)
    tile = tile or call.choose("values")
    blocks = call.row_blocks(tile)
    yield Launch(
        values.compute_values,
        blocks * call.heads,
        {
            **call.arguments(),
            "row_blocks": blocks,
            "value": value,
            "statistics": statistics,
            "KEEP_THE_SAME": keep_the_same(pair),
            "ROWS": tile.rows,
            "KEYS": tile.keys,
            "PRECISION": call.precision,
        },
        tile,
    )


def slope_launches(
    pair: Pair,
    statistics: Tensor,
    weights: Tensor,
    found: Sides[Gradients],
    tile: Geometry | None = None,
    *,
    hip: bool | None = None,
) -> Iterator[Launch]:
    """The launches of the backward, one for each gradient that there is a tensor for."""
    if not weights.numel() or not pair.student.key.shape[2]:
        return
    call = _Call(pair, hip=torch.version.hip is not None if hip is None else hip)
    keys = pair.student.key.shape[2]
    for of_teacher, gradients in enumerate(found):
        side = pair.sides[of_teacher]
        common = {
            "statistics": statistics,
            "upstream": weights,
            "OF_TEACHER": bool(of_teacher),
            "PRECISION": call.precision,
            "HALF_PRECISION": call.half_precision,
        }
        targets: list[tuple[Pass, Tensor | None]] = [
            ("queries", gradients.query),
            ("keys", gradients.key),
        ]
        for step, gradient in targets:
            if gradient is None:
                continue
            size = tile or call.choose(step)
            given = {**call.arguments(), **common, "gradient": gradient}
            given |= {"ROWS": size.rows, "KEYS": size.keys}
            if step == "queries":
                blocks = call.row_blocks(size)
                given |= {"row_blocks": blocks}
                yield Launch(slopes.sum_over_keys, blocks * call.heads, given, size)
            else:
                blocks = -(-keys // size.keys)
                given |= {"M": keys, "size": weights.numel(), "key_blocks": blocks}
                key_heads = side.key.shape[:2].numel()
                yield Launch(slopes.sum_over_rows, blocks * key_heads, given, size)


class _Call:
    """What all kernels of one comparison are called with."""

    def __init__(self, pair: Pair, *, hip: bool) -> None:
        self._pair = pair
        self._hip = hip
        device = pair.student.query.device
        counted = counted_rows(pair)
        used = Sides(*(keys_in_use(side, counted) for side in pair.sides))
        shape = pair.student.query.shape[:3]
        keys = pair.student.key.shape[2]
        self._sides = Sides(*(_kernel_side(*one) for one in zip(pair.sides, used, strict=True)))
        self._rows = None
        if counted is not None:
            self._rows = as_bytes(counted), counted.expand(shape).stride()
        self._spans = None
        if counted is not None or any(x is not None for x in used):
            self._spans = spans(shape, keys, counted, used, device)
        widths = [block_of(side.query.shape[-1]) for side in pair.sides]
        self._blocks = Sides(*widths)
        each = max(x.query.dtype.itemsize for x in self._sides)
        self._size = max(widths), each
        self.heads = shape[:2].numel()
        # TF32 alone would cost half of a float32's digits; three products of it keep them
        self.precision = "ieee" if hip or each < 4 else "tf32x3"
        self.half_precision = "ieee" if hip else "tf32"

    def choose(self, step: Pass) -> Geometry:
        """The tile of a kernel."""
        return candidates(step, *self._size, hip=self._hip)[0]

    def row_blocks(self, tile: Geometry) -> int:
        """How many tiles the rows of a head make."""
        return -(-self._pair.student.query.shape[2] // tile.rows)

    def arguments(self) -> dict[str, Any]:
        """What every kernel takes."""
        pair = self._pair
        _, h, n, _ = pair.student.query.shape
        student, teacher = pair.sides
        return {
            "student": self._sides.student,
            "teacher": self._sides.teacher,
            "rows_mask": self._rows,
            "spans": self._spans,
            "H": h,
            "N": n,
            "beta": pair.kind.beta,
            "KIND": KINDS[pair.kind.name],
            "STUDENT_WIDTH": student.query.shape[-1],
            "TEACHER_WIDTH": teacher.query.shape[-1],
            "STUDENT_BLOCK": self._blocks.student,
            "TEACHER_BLOCK": self._blocks.teacher,
            "STUDENT_CAUSAL": student.causal,
            "TEACHER_CAUSAL": teacher.causal,
            "STUDENT_BIAS_OF_KEYS": _is_of_keys(student.bias),
            "TEACHER_BIAS_OF_KEYS": _is_of_keys(teacher.bias),
        }


def counted_rows(pair: Pair) -> Tensor | None:
    """The rows that count, boolean (b or 1, h or 1, q or 1); None: all of them."""
    if not pair.teacher.keep.parts():  # a causal row sees its first key
        return pair.rows
    return pair.counted()


def keys_in_use(side: Side, counted: Tensor | None) -> Tensor | None:
    """The keys that a counting row of a side uses, boolean (b or 1, h or 1, k); None: all.

    What the others hold is never read, NaN included.
    """
    keep = side.keep
    _, _, q, k = keep.shape
    if keep.parts() and keep.by_row():
        return keep.keys_in_use(counted, side.query.device)
    kept = keep._replace(causal=False).entries_of_rows(slice(0, 1), side.query.device)
    used = None if kept is None else kept[:, :, 0].expand(-1, -1, k)
    if not side.causal or counted is None:
        return used
    # a causal key is used by the rows behind it, so up to the last row that counts
    rows = counted.expand(*counted.shape[:2], q)
    last = torch.where(rows, torch.arange(1, q + 1, device=rows.device), 0).amax(-1, keepdim=True)
    seen = torch.arange(k, device=rows.device) < last
    return seen if used is None else used & seen


def spans(
    shape: torch.Size, keys: int, counted: Tensor | None, used: Sides[Tensor | None], device: Any
) -> Tensor:
    """For each head the first and last rows that count and keys that are used, (b, h, 4), int32.

    Nothing outside is computed: padding costs nothing where it fills a block.
    """
    b, h, n = shape
    student, teacher = used
    either = None if student is None or teacher is None else student | teacher
    ends = [
        end.expand(b, h)
        for kept, length in ((counted, n), (either, keys))
        for end in _ends(kept, length, device)
    ]
    return torch.stack(ends, -1).to(torch.int32).contiguous()


def keep_the_same(pair: Pair) -> bool:
    """Whether both sides surely keep the same keys of every row."""
    student, teacher = pair.sides
    if student.causal != teacher.causal:
        return False
    masks = zip((student.mask, student.bias), (teacher.mask, teacher.bias), strict=True)
    return all(_is_the_same(*one) for one in masks)


def _is_the_same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    where = [(x.data_ptr(), x.shape, x.stride(), x.dtype, x.device) for x in (one, other)]
    return where[0] == where[1]


def _ends(kept: Tensor | None, length: int, device: Any) -> tuple[Tensor, Tensor]:
    """The first kept position and the one behind the last, (b or 1, h or 1); both 0 for none."""
    if kept is None:
        bounds = torch.tensor([0, length], device=device)
        return bounds[:1, None], bounds[1:, None]
    kept = kept.expand(*kept.shape[:2], length)
    positions = torch.arange(length, device=device)
    first = torch.where(kept, positions, length).amin(-1)
    last = torch.where(kept, positions + 1, 0).amax(-1)
    return torch.minimum(first, last), last


def _kernel_side(side: Side, used: Tensor | None) -> KernelSide:
    dtype = torch.promote_types(side.query.dtype, side.key.dtype)
    query, key = (_addressable(x.to(dtype)) for x in (side.query, side.key))
    b, h, n, _ = query.shape
    k = key.shape[2]
    used_strides: tuple[int, ...] = (0, 0, 0)
    if used is not None:
        used = used.contiguous()
        used_strides = used.expand(b, h, k).stride()
    mask = _along_keys(side.mask if side.mask is not None and side.mask.shape[2] > 1 else None, k)
    bias = _along_keys(side.bias, k)
    log2_e = math.log2(math.e)
    return KernelSide(
        query, query.stride()[:3], key, key.stride()[:3],
        as_bytes(used), used_strides,
        as_bytes(mask), _map_strides(mask, (b, h, n, k)),
        bias, _map_strides(bias, (b, h, n, k)),
        side.factor * log2_e,
        0.0 if bias is None else torch.finfo(bias.dtype).min / 2,
        log2_e / side.temperature,
        min(n, k) if side.causal else k,
        side.sharing,
    )  # fmt: skip


def _addressable(x: Tensor) -> Tensor:
    """With neighbouring numbers in a vector, and a head within 32-bit addresses."""
    if x.stride(-1) != 1 or x.shape[2] * x.stride(2) >= FAR:
        return x.contiguous()
    return x


def _along_keys(x: Tensor | None, keys: int) -> Tensor | None:
    """A map whose neighbouring keys are neighbours in memory."""
    if x is None or (x.stride(3) == 1 and x.shape[3] == keys):
        return x
    return x.expand(*x.shape[:3], keys).contiguous()


def _map_strides(x: Tensor | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (0, 0, 0, 0) if x is None else x.expand(shape).stride()


def as_bytes(x: Tensor | None) -> Tensor | None:
    """A mask as the kernels read it."""
    return None if x is None else x.view(torch.uint8)


def _is_of_keys(bias: Tensor | None) -> bool:
    return bias is not None and bias.shape[2] == 1
