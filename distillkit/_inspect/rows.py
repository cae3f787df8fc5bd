"""The order of an image's tokens as runs of patches: grids, tokens at row ends, special ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import DistillKitError


class UnknownOrderError(DistillKitError):
    """The patches do not come in an order that a file can say."""


class Patch(NamedTuple):
    """A token that is a patch: of which picture, and which of its cells in the picture's order."""

    picture: int
    cell: int


class GridRun(NamedTuple):
    """Patches of one picture, or of several alike one after another.

    Attributes:
        grid: rows and columns; None where the entry does not show them.
        length: how many tokens.
        special: which of them are no patch.
        newlines: whether each row ends in a token of its own.
        images: how many pictures.
    """

    grid: tuple[int, int] | None
    length: int
    special: tuple[int, ...] = ()
    newlines: bool = False
    images: int = 1


def grid_runs(
    tokens: Sequence[Patch | None], grids: Sequence[tuple[int, int]] | None
) -> list[GridRun]:
    """An example's image tokens, in the order of the sequence, as runs.

    Args:
        tokens: each a patch, or None where it is none.
        grids: of every picture.

    Raises:
        UnknownOrderError: the patches of a picture are not in its order, or pictures alternate.

    Examples:
        >>> grid_runs([None, Patch(0, 0), Patch(0, 1)], [(1, 2)])
        [GridRun(grid=(1, 2), length=3, special=(0,), newlines=False, images=1)]
    """
    runs: list[GridRun] = []
    for part in _by_picture(tokens):
        picture = next(one.picture for one in part if one is not None)
        run = _run(part, None if grids is None else grids[picture])
        if runs and runs[-1]._replace(images=1, length=run.length) == run and not run.special:
            before = runs.pop()
            run = run._replace(images=before.images + 1, length=before.length + run.length)
        runs.append(run)
    return runs


def _by_picture(tokens: Sequence[Patch | None]) -> list[list[Patch | None]]:
    """The tokens of each picture; those between two are of the first of them."""
    parts: list[list[Patch | None]] = [[]]
    current: int | None = None
    seen: set[int] = set()
    for token in tokens:
        if token is not None and token.picture != current:
            if token.picture in seen:
                raise UnknownOrderError("patches of several pictures alternate")
            if current is not None:
                parts.append([])
            current = token.picture
            seen.add(current)
        parts[-1].append(token)
    return parts if current is not None else []


def _run(part: Sequence[Patch | None], grid: tuple[int, int] | None) -> GridRun:
    cells = [one.cell for one in part if one is not None]
    if cells != sorted(cells):
        shown = ", ".join(map(str, cells[:6]))
        raise UnknownOrderError(f"the patches come as {shown}, ... of the picture's own order")
    holes = tuple(i for i, one in enumerate(part) if one is None)
    if grid is not None and holes:
        rows, columns = grid
        ends = tuple((row + 1) * (columns + 1) - 1 for row in range(rows))
        if holes == ends:
            return GridRun(grid, len(part), newlines=True)
    return GridRun(grid, len(part), holes)
