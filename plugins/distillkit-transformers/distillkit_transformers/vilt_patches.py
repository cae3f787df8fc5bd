"""Which patches of an image a tower sees: ViLT's rule without its dice, in raster order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.errors import ShapeError


class Patches(NamedTuple):
    """The patches of a batch of images.

    Attributes:
        raster: ``(b, n)``: the places of the patches in the raster of ``grid``, real ones first.
        real: ``(b, n)``: which of them belong to the image; the others are padding.
        grid: rows and columns of the raster of ``pixel_values``.
        sizes: ``(b, 2)``: rows and columns that each image fills.
    """

    raster: Tensor
    real: Tensor
    grid: tuple[int, int]
    sizes: Tensor

    @property
    def places(self) -> Tensor:
        """``(b, n, 2)``: row and column of every patch, as ViLT writes them."""
        columns = self.grid[1]
        return torch.stack([self.raster // columns, self.raster % columns], -1)


def choose_patches(
    pixel_mask: Tensor | None,
    count: int,
    grid: tuple[int, int],
    given: Tensor | None = None,
    device: torch.device | None = None,
) -> Patches:
    """All patches of every image, row by row, filled up with padding; or those that are given.

    Args:
        pixel_mask: ``(b, height, width)``, 1 for pixels of the image; None: all are.
        count: the number of images, b.
        grid: rows and columns of patches of the padded images.
        given: ``(b, n, 2)``: rows and columns of the patches to see, in any order.
        device: of the result, where there is no mask.

    Returns:
        Patches in raster order, padding last.

    Raises:
        ShapeError: given patches of other images, or beyond the raster.
    """
    rows, columns = grid
    if pixel_mask is None:
        mask = torch.ones(count, rows, columns, dtype=torch.bool, device=device)
    else:
        mask = F.interpolate(pixel_mask[:, None].float(), size=grid)[:, 0] != 0
    sizes = torch.stack([mask[:, :, 0].sum(1), mask[:, 0].sum(1)], 1)
    flat = mask.flatten(1)
    if given is None:
        length = int(sizes.prod(1).max()) if count else rows * columns
        order = torch.argsort((~flat).long(), dim=1, stable=True)[:, :length]
        return Patches(order, flat.gather(1, order), grid, sizes)
    _check_given(given, count, grid)
    index = given[..., 0] * columns + given[..., 1]
    rank = torch.where(flat.gather(1, index), index, rows * columns)
    index = index.gather(1, rank.argsort(dim=1, stable=True))
    return Patches(index, flat.gather(1, index), grid, sizes)


def _check_given(given: Tensor, count: int, grid: tuple[int, int]) -> None:
    if given.ndim != 3 or given.shape[0] != count or given.shape[2] != 2:
        raise ShapeError(
            f"patches are (b, n, 2), row and column of each, of {count} images; got "
            f"{tuple(given.shape)}"
        )
    limit = torch.tensor(grid, device=given.device)
    if given.numel() and bool(((given < 0) | (given >= limit)).any()):
        raise ShapeError(
            f"a patch lies beyond the {grid[0]} x {grid[1]} patches of pixel_values: pass the "
            "patches that a teacher drew of these very images"
        )


def spread_positions(table: Tensor, patches: Patches) -> Tensor:
    """The position embeddings of chosen patches, ``(b, n, d)``; zero for padding.

    A square of positions is stretched to the rows and columns of each image, as ViLT does.

    Args:
        table: ``(1, d, side, side)``.
        patches: which patches, of images of which sizes.
    """
    rows, columns = patches.grid
    stretched: dict[tuple[int, int], Tensor] = {}
    found = []
    for height, width in patches.sizes.tolist():
        if (height, width) not in stretched:
            grown = F.interpolate(table, size=(height, width), mode="bilinear", align_corners=True)
            padded = F.pad(grown, (0, columns - width, 0, rows - height))
            stretched[height, width] = padded[0].flatten(1).T
        found.append(stretched[height, width])
    every = torch.stack(found) if found else table.new_zeros(0, rows * columns, table.shape[1])
    return every.gather(1, patches.raster[..., None].expand(-1, -1, every.shape[2]))
