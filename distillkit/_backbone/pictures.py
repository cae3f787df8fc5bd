"""The pictures of each example, as the adapter file and the batch say them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from ..errors import SignalError
from .patch_cells import Image, Images, tokens_of
from .token_run import TokenRun

Read = Callable[[str], Tensor]
"""An entry of the batch, by name; one that is not there is an error."""


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
