"""Batch entries that say how many rows and columns of patches each image has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from .pictures import PatchesFound


class SizesFound(NamedTuple):
    """An entry with the grids of all images.

    Attributes:
        entry: its name.
        merge: so many of its patches a side are one token.
        images: how many images it is of.
        varies: whether images of unequal size show that the tokens follow it.
    """

    entry: str
    merge: int
    images: int
    varies: bool


def find_sizes(
    entries: Mapping[str, Tensor], patches: PatchesFound, counts: Sequence[int]
) -> SizesFound | None:
    """The entry that the grids of the image's tokens follow; None: there is none.

    Args:
        entries: integers ``(images, 2 or 3)``.
        patches: the image's tokens.
        counts: how many of them each example has.
    """
    for name, entry in entries.items():
        shapes = [tuple(one[-2:]) for one in entry.reshape(-1, entry.shape[-1]).tolist()]
        merge = _merge(shapes, patches, counts)
        if merge is not None:
            return SizesFound(name, merge, len(shapes), len(set(shapes)) > 1)
    return None


def _merge(
    shapes: Sequence[tuple[int, ...]], patches: PatchesFound, counts: Sequence[int]
) -> int | None:
    if patches.grids is not None:
        if len(shapes) != len(patches.grids) or shapes[0] == patches.size:
            return None
        factors = {
            have / made
            for shape, grid in zip(shapes, patches.grids, strict=True)
            for have, made in zip(shape, grid, strict=True)
        }
        factor = factors.pop()
        return int(factor) if not factors and factor == int(factor) else None
    merge = math.isqrt(patches.merged)
    if merge**2 != patches.merged or any(side % merge for shape in shapes for side in shape):
        return None
    made = [math.prod(shape) // patches.merged for shape in shapes]
    if len(patches.shape) == 3:
        fits = len(made) == len(counts) and all(map(int.__le__, made, counts))
    else:
        fits = sum(made) == sum(counts) and (len(made) != len(counts) or made == list(counts))
    return merge if fits else None
