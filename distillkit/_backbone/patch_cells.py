"""The cells that the patches of pictures are, whole or in tiles, and where they lie."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError, SignalError
from .token_run import TokenRun
from .tokens import WHOLE, grid_extents, insert_special, special_mask


class Image(NamedTuple):
    """One image, or one video.

    Attributes:
        rows: of patches in each picture of it.
        columns: of patches in each picture of it.
        tiles: rows and columns of tiles; None: it is shown as one picture.
        frames: how many there are.
    """

    rows: int
    columns: int
    tiles: tuple[int, int] | None = None
    frames: int = 1


Images = tuple[Image, ...]
"""The images of one example."""


class Cells(NamedTuple):
    """The tokens of a run of patches, for every example (e), or one that stands for all (1).

    Attributes:
        counts: how many tokens each example has.
        length: m, the most of them.
        special: the tokens without a place, as ``ModalityTokens.special``.
        grid: of the one picture, or of several, as ``ModalityTokens.grid``.
        shown: ``(e, m, 4)``: where each lies within what is shown of its image.
        image: ``(e, m)``: the number of its image within the example.
        moment: ``(e, m, 2)``: which image, and which part of a video, from start to stop.
    """

    counts: tuple[int, ...]
    length: int
    special: tuple[int, ...] | Tensor
    grid: tuple[int, int] | Tensor
    shown: Tensor
    image: Tensor
    moment: Tensor


def tokens_of(run: TokenRun, image: Image) -> int:
    """The number of tokens of one image."""
    return len(_boxes(run, image)) * image.frames * image.rows * (image.columns + run.newlines)


def _boxes(run: TokenRun, image: Image) -> list[Sequence[float]]:
    """What each picture of an image shows of it, in order."""
    if image.tiles is None:
        return [WHOLE[0].tolist()]
    rows, columns = image.tiles
    tiles = grid_extents(image.tiles, WHOLE)[0].tolist() if rows and columns else []
    if run.thumbnail is None:
        return tiles
    whole = [WHOLE[0].tolist()]
    return [*whole, *tiles] if run.thumbnail == "first" else [*tiles, *whole]


def cells_of(run: TokenRun, examples: tuple[Images, ...], length: int | None) -> Cells:
    """The tokens of patches, special ones among them.

    Args:
        run: what the adapter file says.
        examples: the images of each example, or of one that stands for all.
        length: the number of tokens, where padding follows the patches.

    Raises:
        SignalError: more patches than tokens; a special token beyond the last.
    """
    made = [_example_cells(run, images) for images in examples]
    counts = tuple(len(facts) for facts, _ in made)
    longest = max(counts, default=0) if length is None else length
    if max(counts, default=0) > longest or (run.fixed_count is not None and counts[0] != longest):
        raise SignalError(
            f"the {run.modality} run has {longest} tokens, but its patches and special tokens are "
            f"{max(counts)}"
        )
    facts = torch.stack([_padded(one, longest) for one, _ in made])
    most = max((len(grids) for _, grids in made), default=0)
    grids = torch.stack([_padded(one, most) for _, one in made]).long()
    return Cells(
        counts,
        longest,
        _as_positions(facts[..., 7] != 0),
        _as_pair(grids) if min(counts) == longest else grids,
        facts[..., :4],
        facts[..., 4].long(),
        facts[..., 5:7],
    )


def _as_positions(special: Tensor) -> tuple[int, ...] | Tensor:
    """Special tokens as positions, where every example has the same ones."""
    if bool((special == special[:1]).all()):
        return tuple(special[0].nonzero()[:, 0].tolist())
    return special


def _as_pair(grids: Tensor) -> tuple[int, int] | Tensor:
    """The one grid of every example, where there is one."""
    if grids.shape[1] == 1 and bool((grids == grids[:1]).all()):
        rows, columns = grids[0, 0].tolist()
        return rows, columns
    return grids


@functools.lru_cache(maxsize=256)  # examples come again with the same sizes
def _example_cells(run: TokenRun, images: Images) -> tuple[Tensor, Tensor]:
    """Of each token what is known of it, ``(m, 8)``, and the grids of all pictures ``(g, 2)``."""
    with torch.device("cpu"):  # kept for forwards under another default device
        return _new_example_cells(run, images)


def _new_example_cells(run: TokenRun, images: Images) -> tuple[Tensor, Tensor]:
    exact = torch.float64  # of boxes in any precision
    parts, grids = [torch.zeros(0, 8, dtype=exact)], [torch.zeros(0, 2)]
    for number, image in enumerate(images):
        for frame in range(image.frames if image.rows * image.columns else 0):
            start, stop = (number + (frame + end) / image.frames for end in (0, 1))
            for box in _boxes(run, image):
                facts = torch.tensor([number, start, stop], dtype=exact)
                parts.append(_picture_cells(image, box, facts, newlines=run.newlines))
                grids.append(torch.tensor([[image.rows, image.columns]]))
    facts = torch.cat(parts)
    try:
        is_special = special_mask(run.special, len(facts) + len(run.special))
    except ShapeError as error:
        raise SignalError(f"{run.modality} run: {error}") from None
    facts = insert_special(facts[None], run.special)[0]
    facts[is_special, 7] = 1
    return facts, torch.cat(grids)


def _picture_cells(image: Image, box: Sequence[float], facts: Tensor, *, newlines: bool) -> Tensor:
    cells = grid_extents((image.rows, image.columns), facts.new_tensor([box]))[0]
    known = torch.cat([facts, facts.new_zeros(1)]).expand(len(cells), 4)
    rows = torch.cat([cells, known], 1).view(image.rows, image.columns, 8)
    if newlines:
        end = torch.cat([facts.new_zeros(4), facts, facts.new_ones(1)])
        rows = torch.cat([rows, end.expand(image.rows, 1, 8)], 1)
    return rows.flatten(0, 1)


def _padded(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])


def extents_of(run: TokenRun, cells: Cells, boxes: Tensor | None) -> Tensor | None:
    """Where the patches lie in the raw input: ``(e, m, 4)``, or ``(e, m, 6)`` of several images.

    Args:
        run: what the adapter file says.
        cells: the tokens.
        boxes: what is shown of each image, ``(e, images, 4)``; None: what the file says.
    """
    if boxes is None:
        if run.shows is None:
            return None
        boxes = torch.tensor(run.shows).view(1, 1, 4)
    if not boxes.is_floating_point():
        boxes = boxes.float()
    shown = cells.shown.to(boxes)
    examples = max(len(boxes), len(shown))
    box = boxes.expand(examples, -1, 4)
    if box.shape[1] > 1:  # else it is what all images show
        box = box.gather(1, cells.image.to(box.device)[..., None].expand(examples, -1, 4))
    corner, size = box[..., :2], box[..., 2:] - box[..., :2]
    ends = [corner + shown[..., :2] * size, corner + shown[..., 2:] * size]
    # special tokens and padding lie nowhere, also in an image that is shown in part
    has_size = (shown[..., 2:] > shown[..., :2]).all(-1, keepdim=True)
    if run.images is not None or run.frames is not None:
        moment = cells.moment.to(boxes).expand(examples, -1, 2)
        ends = [torch.cat([moment[..., i : i + 1], ends[i]], 2) for i in (0, 1)]
    return torch.where(has_size, torch.cat(ends, 2), 0)
