"""The pictures of each example, whole or in tiles, and the cells that their patches are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError, SignalError
from .token_run import TokenRun
from .tokens import WHOLE, grid_extents, insert_special, special_mask

Read = Callable[[str], Tensor]
"""An entry of the batch, by name; one that is not there is an error."""


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


def images_of(
    run: TokenRun, read: Read, counts: Callable[[], Sequence[int]] | None
) -> tuple[Images, ...]:
    """The images of each example, or of one that stands for all.

    Args:
        run: what the adapter file says.
        read: entries of the batch.
        counts: of marked tokens, how many each example has; None: they are not marked.

    Raises:
        SignalError: the batch and the file do not fit together.
    """
    found = _listed_images(run, read)
    if run.images is not True:
        return _grouped(run, found, run.images or 1)
    if found.per_example is not None:
        return _grouped(run, found, found.per_example)
    if counts is None:
        raise SignalError(
            f"images = true: nothing says how many of the {run.modality} images are of each "
            "example. Say how many, or shape the entry (examples, images, 2)"
        )
    return _by_counts(run, found, counts())


class _Listed(NamedTuple):
    """The images of the whole batch, one after another.

    Attributes:
        images: those of all examples; or one that all are like.
        alike: whether it is one that all are like.
        per_example: how many images each example has, where an entry's shape says it.
        named: the entry that they come from.
    """

    images: Images
    alike: bool
    per_example: int | None = None
    named: str = ""


def _listed_images(run: TokenRun, read: Read) -> _Listed:
    grid, frames, per_example, named = run.fixed_grid, run.frames, None, ""
    rows: list[list[int]] | None = None
    if isinstance(run.grid, str):
        rows, per_example = _rows_of(run, run.grid, read(run.grid))
        named = run.grid
    elif run.pixels_entry is not None:
        named = run.pixels_entry
        size = _size_of(run, named, read(named))
        grid = (_divided(run, named, size[1], 0), _divided(run, named, size[2], 1))
        if run.frames is True:
            frames = size[0] or 1
        elif run.frames is None and run.tiles is None:
            per_example = size[0]
    tiles: list[tuple[int, int]] | None = None
    if isinstance(run.tiles, str):
        tiles, of_tiles = _tiles_of(run.tiles, read(run.tiles))
        per_example, named = of_tiles or per_example, named or run.tiles
    if rows is None and tiles is None:
        assert grid is not None
        one = Image(*grid, run.fixed_tiles, int(frames or 1))
        return _Listed((one,), alike=True, per_example=per_example, named=named)
    count = len(rows if rows is not None else tiles or ())
    if rows is not None and tiles is not None and len(rows) != len(tiles):
        raise SignalError(
            f"{run.grid!r} is of {len(rows)} {run.modality} images, but {run.tiles!r} of "
            f"{len(tiles)}"
        )
    shapes = rows if rows is not None else [[int(frames or 1), *(grid or ())]] * count
    of_tiles_each = tiles if tiles is not None else [run.fixed_tiles] * count
    images = tuple(
        Image(shape[1], shape[2], of_tiles, frames=shape[0])
        for shape, of_tiles in zip(shapes, of_tiles_each, strict=True)
    )
    return _Listed(images, alike=False, per_example=per_example, named=named)


def _rows_of(run: TokenRun, name: str, entry: Tensor) -> tuple[list[list[int]], int | None]:
    """Frames, rows and columns of each image; and how many images an example has."""
    if entry.ndim not in (2, 3) or entry.shape[-1] not in (2, 3) or entry.is_floating_point():
        raise SignalError(
            f"grid = {name!r}: the entry is integers (images, 2), rows and columns, or (images, "
            f"3), frames, rows and columns; (examples, images, 2 or 3) where each has several; got "
            f"{entry.dtype} {tuple(entry.shape)}"
        )
    found = []
    for numbers in entry.reshape(-1, entry.shape[-1]).tolist():
        frames, rows, columns = numbers if len(numbers) == 3 else (None, *numbers)
        shape = [_divided(run, name, rows, 0), _divided(run, name, columns, 1)]
        if run.frames is None and frames not in (None, 1) and rows:
            raise SignalError(
                f"grid = {name!r}: one of the {run.modality} entries has {frames} frames: say "
                "`frames = true` of runs of videos"
            )
        if run.frames is True:
            found.append([frames or 1, *shape])
        else:
            found.append([run.frames or 1, *shape])
    return found, entry.shape[1] if entry.ndim == 3 else None


def _size_of(run: TokenRun, name: str, entry: Tensor) -> tuple[int | None, int, int]:
    """Pictures in each example, where the entry has an axis of them; height and width of one."""
    if entry.ndim not in (4, 5):
        raise SignalError(
            f"patch = {run.patch}: {name!r} is the image, (b, channels, height, width) or (b, "
            f"pictures, channels, height, width); got {tuple(entry.shape)}. Where it holds "
            'patches, `grid` says how many: a pair, or a batch entry, grid = "image_grid_thw"'
        )
    pictures = entry.shape[1] if entry.ndim == 5 else None
    if (pictures or 1) > 1 and run.images is None and run.frames is None and run.tiles is None:
        raise SignalError(
            f"{name!r} has {pictures} pictures for each example: say what they are, `images`, "
            "`frames` or `tiles`"
        )
    return pictures, entry.shape[-2], entry.shape[-1]


def _divided(run: TokenRun, name: str, size: int, axis: int) -> int:
    """Patches along an axis, of an image of so many pixels or unmerged patches."""
    divisor = run.merge * (run.patch[axis] if run.patch is not None else 1)
    if run.patch is None and size % divisor:
        raise SignalError(
            f"merge = {run.merge}: {name!r} has {size} patches along one side, which it does not "
            "divide"
        )
    return size // divisor


def _tiles_of(name: str, entry: Tensor) -> tuple[list[tuple[int, int]], int | None]:
    if entry.ndim not in (2, 3) or entry.shape[-1] != 2 or entry.is_floating_point():
        raise SignalError(
            f"tiles = {name!r}: the entry is integers (images, 2), rows and columns of tiles; got "
            f"{entry.dtype} {tuple(entry.shape)}"
        )
    pairs = [(rows, columns) for rows, columns in entry.reshape(-1, 2).tolist()]
    return pairs, entry.shape[1] if entry.ndim == 3 else None


def _grouped(run: TokenRun, found: _Listed, size: int) -> tuple[Images, ...]:
    """So many images for each example."""
    if found.per_example is not None and found.per_example != size:
        raise SignalError(
            f"{found.named!r} has {found.per_example} {run.modality} images for each example, but "
            f"the file says {size}: `images` = {found.per_example}, or true"
        )
    if found.alike:
        return (found.images * size,)
    if len(found.images) % size:
        raise SignalError(
            f"{found.named!r} is of {len(found.images)} {run.modality} images, which are not "
            f"{size} for each example"
        )
    return tuple(found.images[i : i + size] for i in range(0, len(found.images), size))


def _by_counts(run: TokenRun, found: _Listed, counts: Sequence[int]) -> tuple[Images, ...]:
    """As many images for each example as its marked tokens are of."""
    remaining = list(found.images)
    examples = []
    for example, count in enumerate(counts):
        own: list[Image] = []
        left = count - len(run.special)
        while left > 0 and (remaining or found.alike):
            own.append(found.images[0] if found.alike else remaining.pop(0))
            left -= tokens_of(run, own[-1])
        if left != 0 and count:
            raise SignalError(
                f"example {example} has {count} {run.modality} tokens, which no whole number of "
                f"images makes: they are of {[tokens_of(run, one) for one in own]} tokens"
            )
        examples.append(tuple(own))
    if remaining and not found.alike:
        raise SignalError(
            f"{found.named!r} is of {len(found.images)} {run.modality} images, but the marked "
            f"tokens are of {len(found.images) - len(remaining)}"
        )
    return tuple(examples)


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
