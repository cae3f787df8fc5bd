"""One side's scores of a tile, in base 2, as every kernel computes them."""

from __future__ import annotations

import triton
import triton.language as tl

# The interpreter multiplies the bit patterns of bfloat16, and sums float16 in float16.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

DROPPED = tl.constexpr(-1e38)  # of a score that does not count: its power is 0
LOWEST = tl.constexpr(-1e37)  # no bias of a kept score goes below

KL = tl.constexpr(0)
REVERSE = tl.constexpr(1)
JSD = tl.constexpr(2)

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """``a @ b`` in float32, from operands of one dtype."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def slope_product(slope, b, PRECISION: tl.constexpr, HALF_PRECISION: tl.constexpr):
    """``slope @ b``.

    A slope near convergence is smaller than any float16, so beside float16 it is rounded to the
    eleven bits of TF32, which hold a float16 exactly.
    """
    if b.dtype == tl.float16:
        return product(slope, b.to(tl.float32), HALF_PRECISION)
    return product(slope.to(b.dtype), b, PRECISION)


@triton.jit
def load_vectors(
    pointer, strides, b, h, positions, counted, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Some positions of ``(b, h, n, width)``, 0 where one does not count: never what it held."""
    widths = tl.arange(0, BLOCK)
    start = pointer + b * strides[0] + h * strides[1]
    addresses = start + positions[:, None] * strides[2] + widths[None, :]
    inside = counted[:, None]
    if WIDTH != BLOCK:
        inside = inside & (widths < WIDTH)[None, :]
    return tl.load(addresses, mask=inside, other=0.0)


@triton.jit
def keys_in_use(side, b, h, columns):
    """The keys of a tile that some row of a head uses."""
    seen = columns < side.keys
    if side.used is not None:
        start = side.used + b * side.used_strides[0] + h * side.used_strides[1]
        seen = seen & (tl.load(start + columns, mask=seen, other=0) != 0)
    return seen


@triton.jit
def load_map(start, stride, rows, first, columns, seen, N):
    """A tile of a map of rows x keys; within the tile 32 bits address it."""
    inside = (rows < N)[:, None] & seen[None, :]
    tile = start + tl.cast(first, tl.int64) * stride
    return tl.load(tile + (rows - first)[:, None] * stride + columns[None, :], mask=inside, other=0)


@triton.jit
def score_tile(
    query,
    key,
    side,
    b,
    h,
    rows,
    first,
    columns,
    seen,
    N,
    CAUSAL: tl.constexpr,
    BIAS_OF_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The scores of rows, from the ``first`` on, x keys, and which of them count."""
    x = product(query, tl.trans(key), PRECISION) * side.factor
    keep = seen[None, :]
    if CAUSAL:
        keep = keep & (columns[None, :] <= rows[:, None])
    if side.mask is not None:
        start = side.mask + b * side.mask_strides[0] + h * side.mask_strides[1]
        keep = keep & (load_map(start, side.mask_strides[2], rows, first, columns, seen, N) != 0)
    if side.bias is not None:
        start = side.bias + b * side.bias_strides[0] + h * side.bias_strides[1]
        if BIAS_OF_KEYS:
            added = tl.load(start + columns, mask=seen, other=0.0)[None, :]
        else:
            added = load_map(start, side.bias_strides[2], rows, first, columns, seen, N)
        added = added.to(tl.float32)
        keep = keep & (added > side.floor)
        softened = added * side.soften
        x += tl.where(softened < LOWEST, LOWEST, softened)
    return tl.where(keep, x, DROPPED), keep


@triton.jit
def counted_rows(rows_mask, b, h, rows, N):
    """The rows of a tile that count."""
    counted = rows < N
    if rows_mask is not None:
        pointer, strides = rows_mask
        start = pointer + b * strides[0] + h * strides[1]
        counted = counted & (tl.load(start + rows * strides[2], mask=counted, other=0) != 0)
    return counted
