"""Where each modality's tokens sit in a sequence and in the raw input, for one forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ShapeError


@dataclass(frozen=True, eq=False)
class ModalityTokens:
    """The tokens of one modality in one stream.

    Attributes:
        positions: where they sit in the sequence of n tokens: a slice, boolean ``(b, n)``, or
            indices ``(b, m)`` in reading order, where a model shuffles its tokens.
        special: which of them stand for no word or patch ([CLS]): positions *within the modality*,
            the same in every example, or boolean ``(b, m)``. The first look at both sides compares
            them, and the others are the cells of the grid, in order. Where a token lies, its extent
            alone says.
        grid: rows and columns of the patches of an image; or ``(b, g, 2)``, those of g images or
            tiles in each example one after another, where there are several or sizes differ; no
            rows: no image.
        extents: where each token lies in the raw input, in the order of the positions: the
            characters ``(b, m, 2)`` of a text, start and stop; or boxes ``(b, m, 4)`` of an image,
            top, left, bottom, right as fractions of it before any resizing and cropping; or
            ``(b, m, 6)`` where there are several images or frames, which one (start, top, left,
            stop, bottom, right). A token of no size lies nowhere.
        ids: the vocabulary entries ``(b, m)`` of a text.

    Raises:
        ShapeError: ``special`` or ``grid`` of another kind; more or fewer positions than the grid
            has cells, as far as both are plain numbers.
    """

    positions: slice | Tensor
    special: tuple[int, ...] | Tensor = ()
    grid: tuple[int, int] | Tensor | None = None
    extents: Tensor | None = None
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        _check_special(self.special)
        _check_grid(self.grid)
        count = _known_count(self.positions)
        if count is not None:
            check_count(self, count)


def check_count(tokens: ModalityTokens, count: int) -> None:
    """Refuse special tokens and grids that ``count`` tokens cannot have.

    Raises:
        ShapeError: what there is more or less of.
    """
    special = tokens.special
    if isinstance(special, Tensor):
        return
    beyond = [one for one in special if not 0 <= one < count]
    if beyond:
        raise ShapeError(
            f"special = {special}: there are {count} tokens, at positions 0 to {count - 1} within "
            "the modality"
        )
    if isinstance(tokens.grid, tuple):
        rows, columns = tokens.grid
        if rows * columns + len(set(special)) != count:
            raise ShapeError(
                f"a grid of {rows} x {columns} patches and {len(set(special))} special tokens are "
                f"{rows * columns + len(set(special))} tokens, but there are {count} positions"
            )


def _check_special(special: object) -> None:
    if isinstance(special, Tensor):
        if special.dtype != torch.bool or special.ndim != 2:
            raise ShapeError(
                "special tokens as a tensor are boolean (b, m), True where one is; got "
                f"{special.dtype} {tuple(special.shape)}"
            )
    elif not isinstance(special, tuple) or not all(isinstance(one, int) for one in special):
        fix = f"; write special=({special},)" if isinstance(special, int) else ""
        raise ShapeError(
            "special is a tuple of positions within the modality, (0,), or a boolean tensor "
            f"(b, m); got {special!r}{fix}"
        )


def _check_grid(grid: object) -> None:
    if grid is None:
        return
    if isinstance(grid, Tensor):
        if grid.ndim != 3 or grid.shape[2] != 2 or grid.is_floating_point():
            raise ShapeError(
                "grids of several images are integers (b, g, 2), rows and columns of each; got "
                f"{grid.dtype} {tuple(grid.shape)}"
            )
        return
    pair = isinstance(grid, tuple) and len(grid) == 2
    if not pair or not all(isinstance(n, int) and n > 0 for n in grid):  # type: ignore[attr-defined]
        raise ShapeError(
            "a grid is a tuple (rows, columns), both at least 1, or an integer tensor (b, g, 2); "
            f"got {grid!r}"
        )


def _known_count(positions: slice | Tensor) -> int | None:
    """How many tokens there are, where nothing needs to be counted."""
    if isinstance(positions, Tensor):
        return None if positions.dtype == torch.bool else positions.shape[-1]
    start, stop = positions.start or 0, positions.stop
    if not isinstance(start, int) or not isinstance(stop, int) or positions.step is not None:
        return None
    return max(0, stop - start) if start >= 0 and stop >= 0 else None


@dataclass(frozen=True, eq=False)
class StreamTokens(Mapping[str, ModalityTokens]):
    """Modality -> its tokens in one stream.

    Attributes:
        modalities: the tokens of every modality in the sequence.
        valid: boolean ``(b, n)``: the tokens that are no padding; None: all of them.
    """

    modalities: Mapping[str, ModalityTokens]
    valid: Tensor | None = None

    def __getitem__(self, modality: str) -> ModalityTokens:
        return self.modalities[modality]

    def __iter__(self) -> Iterator[str]:
        return iter(self.modalities)

    def __len__(self) -> int:
        return len(self.modalities)


@dataclass(frozen=True, eq=False)
class TokenLayout(Mapping[str, StreamTokens]):
    """Stream -> its tokens, for one forward; and which texts and images are pairs.

    A cross-attention stream, ``text_to_image``, has the rows of the layout's ``text`` and the keys
    of its ``image``.

    Attributes:
        streams: the tokens of every stream that is known.
        pairs: modality -> index ``(p,)``: where texts and images are encoded once and paired,
            pair i is text ``pairs["text"][i]`` with image ``pairs["image"][i]``.

    Examples:
        >>> text, image = ModalityTokens(slice(0, 8)), ModalityTokens(slice(8, 17), grid=(3, 3))
        >>> layout = TokenLayout({"joint": StreamTokens({"text": text, "image": image})})
        >>> layout["joint"]["image"].grid
        (3, 3)
    """

    streams: Mapping[str, StreamTokens]
    pairs: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, stream: str) -> StreamTokens:
        return self.streams[stream]

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams)

    def __len__(self) -> int:
        return len(self.streams)
