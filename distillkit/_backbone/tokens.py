"""Tokens by position: what is known of some out of all, and where patches lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._attention.selection import Selection
from ..errors import ShapeError

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
"""The box ``(1, 4)`` of an image that is shown as it is."""


def grid_extents(
    grid: tuple[int, int], boxes: Tensor, *, special: int | Sequence[int] = 0
) -> Tensor:
    """Where the cells of a patch grid lie in the raw image.

    Args:
        grid: rows and columns of patches.
        boxes: ``(b, 4)``: the part of each raw image that the grid covers: top, left, bottom,
            right as fractions; ``[0, 0, 1, 1]`` is all of it.
        special: positions of the tokens without a place among all, ``-1`` for the last; or a
            number: so many of them stand before the patches.

    Returns:
        ``(b, special + rows * columns, 4)``, row by row.

    Raises:
        ShapeError: boxes of another shape; special tokens beyond the last, or one twice.

    Examples:
        >>> grid_extents((1, 2), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))[0].tolist()
        [[0.0, 0.0, 1.0, 0.5], [0.0, 0.5, 1.0, 1.0]]
        >>> grid_extents((1, 1), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), special=[-1])[0].tolist()
        [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ShapeError(
            "boxes are (b, 4): top, left, bottom, right of what each image shows, as fractions of "
            f"the raw image; got {tuple(boxes.shape)}"
        )
    boxes = boxes if boxes.is_floating_point() else boxes.float()
    rows, columns = grid
    row, column = (torch.arange(n, device=boxes.device, dtype=boxes.dtype) for n in grid)
    row, column = row.repeat_interleave(columns), column.repeat(rows)
    cells = torch.stack([row / rows, column / columns, (row + 1) / rows, (column + 1) / columns], 1)
    corner, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    placed = torch.cat([corner + cells[:, :2] * size, corner + cells[:, 2:] * size], 2)
    before = range(special) if isinstance(special, int) else special
    return insert_special(placed, before)


def insert_special(placed: Tensor, special: Sequence[int]) -> Tensor:
    """Zeros ``(b, m, e)`` among what is known of the others, where special tokens stand.

    Args:
        placed: ``(b, n, e)``: of the others, in order.
        special: positions among all m tokens; ``-1`` is the last.

    Raises:
        ShapeError: a position beyond the last, or one twice.
    """
    if not special:
        return placed
    is_special = special_mask(special, placed.shape[1] + len(special))
    found = placed.new_zeros(len(placed), len(is_special), placed.shape[2])
    found[:, ~is_special] = placed
    return found


def special_mask(special: Sequence[int], count: int) -> Tensor:
    """Boolean ``(count,)``: the special ones of ``count`` tokens.

    Raises:
        ShapeError: a position beyond the last, or one twice.
    """
    is_special = torch.zeros(count, dtype=torch.bool)
    beyond = [one for one in special if not -count <= one < count]
    if beyond:
        raise ShapeError(
            f"special = {list(special)}: there are {count} tokens, at positions 0 to {count - 1}"
        )
    is_special[list(special)] = True
    if int(is_special.sum()) < len(special):
        raise ShapeError(f"special = {list(special)} names one of {count} tokens twice")
    return is_special


def select_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """Select the facts about a sequence's tokens at the positions of one modality.

    Args:
        x: ``(b, n)`` or ``(b, n, e)``: ids, masks or extents of all n tokens.
        positions: boolean ``(b, n)``, or indices ``(b, m)``.

    Returns:
        ``(b, m)`` or ``(b, m, e)``; where examples have unequally many, packed to the front and
        filled with 0.

    Examples:
        >>> select_tokens(torch.tensor([[7, 8, 9]]), torch.tensor([[True, False, True]]))
        tensor([[7, 9]])
    """
    selected = Selection(positions, x.shape[1])
    taken, present = selected.along(x, 1), selected.present(3)
    if present is None:
        return taken
    kept = present[:, 0, 0]
    return torch.where(kept if x.ndim == 2 else kept[..., None], taken, 0)


def chosen(x: Tensor, index: Tensor | slice | None) -> Tensor:
    """Examples of what is known per example; one entry that stands for all examples still does."""
    if index is None or (len(x) == 1 and isinstance(index, slice)):
        return x
    if len(x) == 1 and isinstance(index, Tensor):
        count = int(index.sum()) if index.dtype == torch.bool else len(index)
        return x.expand(count, *x.shape[1:])
    return x[index]
