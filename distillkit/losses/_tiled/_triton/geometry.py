"""The sizes of tiles: what one program of a kernel holds.

They come from a table and not from trials at run time. A trial would take a different tile from one
process to the next, and with it another order of sums; and every entry of a table can be compiled,
and its registers counted, where there is no GPU. ``benchmarks/kernel_tiles.py`` measures
the candidates.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Pass = Literal["values", "queries", "keys"]

WIDEST = 256  # of a head
NARROWEST = 16  # of a matrix product


class Geometry(NamedTuple):
    """One program: rows x keys of a tile, and how many warps work on how many stages of it."""

    rows: int
    keys: int
    warps: int
    stages: int


def block_of(width: int) -> int:
    """The power of two that holds a head's width."""
    return max(NARROWEST, 1 << (width - 1).bit_length())


def candidates(step: Pass, width: int, bytes_each: int, *, hip: bool) -> list[Geometry]:
    """The geometries to choose from, the default first.

    Args:
        step: the kernel.
        width: the wider of both sides' blocks.
        bytes_each: of the wider dtype of both sides.
        hip: for AMD, whose multiprocessors have less shared memory.
    """
    if step == "values":
        table = _HIP_VALUES if hip else _VALUES
    else:
        table = _HIP_SLOPES if hip else _SLOPES
    return table[bytes_each > 2][width]


# by the width of a head; half precision, then float32, whose products take three of TF32
_VALUES = (
    {
        16: [Geometry(64, 64, 4, 2), Geometry(128, 64, 8, 2)],
        32: [Geometry(64, 64, 4, 2), Geometry(128, 64, 8, 2)],
        64: [Geometry(128, 64, 8, 2), Geometry(64, 64, 4, 2)],
        128: [Geometry(64, 64, 8, 2), Geometry(128, 32, 8, 2)],
        256: [Geometry(64, 32, 8, 1), Geometry(64, 32, 8, 2)],
    },
    {
        16: [Geometry(64, 64, 8, 1)],
        32: [Geometry(64, 64, 8, 1)],
        64: [Geometry(64, 32, 8, 1)],
        128: [Geometry(32, 16, 4, 1)],
        256: [Geometry(16, 32, 8, 1)],
    },
)
_SLOPES = (
    {
        16: [Geometry(64, 64, 4, 2)],
        32: [Geometry(64, 64, 4, 2)],
        64: [Geometry(64, 64, 8, 2), Geometry(64, 32, 4, 2)],
        128: [Geometry(64, 64, 8, 1), Geometry(64, 32, 8, 1)],
        256: [Geometry(32, 32, 8, 1)],
    },
    {
        16: [Geometry(64, 32, 8, 1)],
        32: [Geometry(32, 32, 8, 1)],
        64: [Geometry(32, 32, 8, 1)],
        128: [Geometry(16, 32, 8, 1)],
        256: [Geometry(16, 16, 8, 1)],
    },
)
# AMD's warps are twice as wide, and its shared memory is 64 KiB
_HIP_VALUES = (
    {
        16: [Geometry(64, 64, 4, 1)],
        32: [Geometry(64, 64, 4, 1)],
        64: [Geometry(64, 64, 4, 1)],
        128: [Geometry(64, 32, 4, 1)],
        256: [Geometry(32, 32, 4, 1)],
    },
    {
        16: [Geometry(64, 32, 4, 1)],
        32: [Geometry(64, 32, 4, 1)],
        64: [Geometry(64, 32, 4, 1)],
        128: [Geometry(32, 32, 4, 1)],
        256: [Geometry(32, 16, 4, 1)],
    },
)
_HIP_SLOPES = (
    {
        16: [Geometry(64, 32, 4, 1)],
        32: [Geometry(64, 32, 4, 1)],
        64: [Geometry(64, 32, 4, 1)],
        128: [Geometry(32, 32, 4, 1)],
        256: [Geometry(32, 16, 4, 1)],
    },
    {
        16: [Geometry(32, 32, 4, 1)],
        32: [Geometry(32, 32, 4, 1)],
        64: [Geometry(32, 32, 4, 1)],
        128: [Geometry(32, 16, 4, 1)],
        256: [Geometry(16, 16, 4, 1)],
    },
)
