"""Scenes: cells of a square grid, each with a drawing, empty or covered; and their pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distillkit.errors import OptionError

GRID = 2
"""Cells on a side."""
EMPTY = -1
COVERED = -2
_GREY = 128
_MARGIN = 16  # a cover leaves one sixteenth of its cell free on each side


def compose(
    cells: Sequence[int] | np.ndarray, images: np.ndarray, *, background: int = 255
) -> np.ndarray:
    """The picture of a scene.

    Args:
        cells: the number of the drawing in each cell, row by row; -1 is empty, -2 covered.
        images: ``(n, size, size, 4)`` uint8.
        background: the grey of the paper.

    Returns:
        ``(side * size, side * size, 3)`` uint8.

    Raises:
        OptionError: the cells are no square.

    Examples:
        >>> red = np.full((1, 2, 2, 4), 255, np.uint8) * np.array([1, 0, 0, 1], np.uint8)
        >>> picture = compose([0, -1, -1, -1], red)
        >>> picture.shape, picture[0, 0].tolist(), picture[0, 2].tolist()
        ((4, 4, 3), [255, 0, 0], [255, 255, 255])
    """
    side = round(len(cells) ** 0.5)
    if side * side != len(cells):
        raise OptionError(f"the cells of a scene are a square; got {len(cells)}")
    size = images.shape[1]
    picture = np.full((side * size, side * size, 3), background, np.uint8)
    for place, number in enumerate(cells):
        row, column = divmod(place, side)
        cell = picture[row * size : (row + 1) * size, column * size : (column + 1) * size]
        if number == COVERED:
            free = size // _MARGIN
            cell[free : size - free, free : size - free] = _GREY
        elif number != EMPTY:
            opacity = images[number, ..., 3:].astype(np.uint16)
            shown = images[number, ..., :3] * opacity + cell * (255 - opacity) + 127
            cell[:] = (shown // 255).astype(np.uint8)
    return picture
