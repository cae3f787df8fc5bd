"""One run's tokens in one forward: where they are, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._transfer import trackable
from ..errors import ShapeError, SignalError
from .layout import ModalityTokens
from .patch_cells import Cells, cells_of, extents_of
from .pictures import images_of
from .run_entries import RunEntries
from .token_run import TokenRun
from .tokens import select_tokens


class Span(NamedTuple):
    """The part of the sequence that a run lies in."""

    start: int
    stop: int
    cells: Cells | None = None

    @property
    def as_slice(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def length(self) -> int:
        return self.stop - self.start


def tokens_of_run(
    one: RunEntries, positions: slice | Tensor, span: Span
) -> tuple[ModalityTokens, Tensor | None]:
    """One run's tokens with what is known of them; and which are no padding, by their grids."""
    run = one.run

    def select(x: Tensor | None) -> Tensor | None:
        """At these tokens, of what is known of all tokens of the part that they lie in."""
        if x is None or not isinstance(positions, Tensor) or x.shape[1] != span.length:
            return x
        return select_tokens(x.to(positions.device), positions[:, span.as_slice])

    ids = _ids(one, span)
    cells, counts = span.cells, None
    if isinstance(positions, Tensor):
        counts = _Counts(positions)
        cells = _marked_cells(one, counts) if run.has_grid else None
    extents = _extents(one, cells, span.length if counts is None else counts)
    if cells is None:
        special, real = _special(run, span.length if counts is None else None, counts), None
    else:
        special = cells.special
        padded = counts is None and min(cells.counts) < cells.length
        real = _real_cells(one, cells) if padded else None
    if run.special_ids and ids is not None:
        special = _by_ids(run, special, select(ids))
    try:
        tokens = ModalityTokens(
            positions,
            special,
            None if cells is None else cells.grid,
            select(extents),
            select(ids) if run.modality == "text" or run.ids is not None else None,
        )
    except ShapeError as error:
        raise SignalError(f"the {run.modality} run: {error}") from None
    return tokens, real


class _Counts:
    """How many tokens each example has; counted once, where somebody asks."""

    def __init__(self, positions: Tensor) -> None:
        self._positions = positions
        self._found: list[int] | None = None

    def __call__(self) -> list[int]:
        if self._found is None:
            found: list[int] = self._positions.sum(1).tolist()
            self._found = found
        return self._found


def _marked_cells(one: RunEntries, counts: _Counts) -> Cells:
    """The patches of marked tokens; where their sizes come from the batch, as many as are marked.

    Raises:
        SignalError: more or fewer are marked.
    """
    cells = cells_of(one.run, images_of(one.run, one.read, counts), None)
    if one.run.fixed_count is not None:
        return cells  # the axis of these tokens is counted when it is asked for
    found = counts()
    expected = cells.counts * len(found) if len(cells.counts) == 1 else cells.counts
    if len(expected) != len(found):
        raise SignalError(
            f"the {one.run.modality} images are of {len(expected)} examples, but where = "
            f"{one.run.where!r} is of {len(found)}: `images` says how many each example has"
        )
    for example, (count, own) in enumerate(zip(found, expected, strict=True)):
        if count != own:
            raise SignalError(
                f"where = {one.run.where!r} marks {count} {one.run.modality} tokens of example "
                f"{example}, but its images make {own}"
            )
    return cells


def _extents(
    one: RunEntries, cells: Cells | None, count: int | Callable[[], Sequence[int]]
) -> Tensor | None:
    """Where a run's tokens lie, or those of the part that it lies in."""
    run = one.run
    if run.nowhere:
        number = count if isinstance(count, int) else max(count(), default=0)
        return torch.zeros(1, number, 2 if run.modality == "text" else 4)
    given = one.known(run.extents)
    if cells is None:
        return given
    if given is None:
        return extents_of(run, cells, None)
    if given.ndim == 3 and given.shape[1] == cells.length:
        return given
    if given.ndim not in (2, 3) or given.shape[-1] != 4:
        raise SignalError(
            f"extents = {run.extents!r}: of a grid it is (images, 4), what each image shows, or a "
            f"box for each token, (b, {cells.length}, 4); got {tuple(given.shape)}"
        )
    images = int(cells.image.max()) + 1 if cells.image.numel() else 1
    if given.ndim == 2:
        given = _boxes_by_example(run, given, cells, images)
    return extents_of(run, cells, given)


def _boxes_by_example(run: TokenRun, boxes: Tensor, cells: Cells, images: int) -> Tensor:
    """What each image shows, ``(b, images, 4)``, of boxes of all images one after another."""
    if len(cells.counts) == 1:
        if len(boxes) % images:
            raise SignalError(
                f"extents = {run.extents!r} has {len(boxes)} boxes, which are not {images} for "
                "each example"
            )
        return boxes.view(-1, images, 4)
    counts = (cells.image.amax(1) + 1).tolist() if cells.image.shape[1] else [0]
    owned = [n if count else 0 for n, count in zip(counts, cells.counts, strict=True)]
    if sum(owned) != len(boxes):
        raise SignalError(
            f"extents = {run.extents!r} has {len(boxes)} boxes for {sum(owned)} images"
        )
    parts = torch.split(boxes, owned)
    return torch.stack([torch.cat([x, x.new_zeros(images - len(x), 4)]) for x in parts])


def _special(run: TokenRun, length: int | None, counts: _Counts | None) -> tuple[int, ...] | Tensor:
    """The special tokens of a run without a grid."""
    if length is not None:
        return _resolved(run, length)
    if counts is None or all(one >= 0 for one in run.special):
        return tuple(sorted(run.special))  # how many there are, is counted when it is asked for
    found = counts()
    masks = torch.zeros(len(found), max(found, default=0), dtype=torch.bool)
    for example, count in enumerate(found):
        masks[example, list(_resolved(run, count))] = True
    return masks


def _resolved(run: TokenRun, count: int) -> tuple[int, ...]:
    """Positions of the special tokens among ``count``."""
    if any(not -count <= one < count for one in run.special):
        raise SignalError(
            f"special = {list(run.special)}: the {run.modality} run has {count} tokens in this "
            f"batch, at positions 0 to {count - 1}"
        )
    return tuple(sorted({one % count for one in run.special}))


def _by_ids(
    run: TokenRun, special: tuple[int, ...] | Tensor, ids: Tensor | None
) -> tuple[int, ...] | Tensor:
    """The special tokens by their vocabulary entries, beside those by position."""
    assert ids is not None
    wanted = torch.tensor(run.special_ids, dtype=ids.dtype, device=ids.device)
    found = torch.isin(ids, wanted)
    if isinstance(special, Tensor):
        return found | special.to(ids.device)
    if special:
        found[:, list(special)] = True
    return found


def _real_cells(one: RunEntries, cells: Cells) -> Tensor:
    """Which tokens of a run are patches, where examples have unequally many."""
    sources = (one.run.grid, one.run.tiles, one.run.pixels_entry)
    named = next(key for key in sources if isinstance(key, str))
    device = one.read(named).device
    counts = torch.tensor(cells.counts, device=device)
    return torch.arange(cells.length, device=device) < counts[:, None]


def _ids(one: RunEntries, span: Span) -> Tensor | None:
    """The vocabulary entries of the part that a run lies in."""
    key = one.run.ids_entry
    if key is None or key == one.run.mask:
        return None
    ids = one.known(key)
    wrong = ids is not None and (
        ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool
        or ids.shape[1] != span.length
    )  # fmt: skip
    if not wrong:
        return ids
    if one.run.ids is None and not one.run.special_ids:
        return None
    raise SignalError(
        f"the vocabulary entries of the {one.run.modality} run are integers (b, {span.length}); "
        f"{key!r} is {ids.dtype} {tuple(ids.shape)}"  # type: ignore[union-attr]
    )


def real_tokens(one: RunEntries, span: Span) -> Tensor | None:
    """Which tokens of a run are real, as its `mask` or `lengths` says."""
    run = one.run
    given = one.known(run.real_entry)
    if given is None:
        return None
    if run.lengths is not None:
        return _mask_of_lengths(run, given, span.length)
    if given.ndim != 2 or given.shape[1] != span.length:
        raise SignalError(
            f"mask = {run.mask!r} is (b, {span.length}), true for the real tokens of the "
            f"{run.modality} run; got {tuple(given.shape)}. Where it says how many are real, that "
            f"is lengths = {run.mask!r}"
        )
    return trackable(given) if given.dtype == torch.bool else given != 0


def _mask_of_lengths(run: TokenRun, lengths: Tensor, length: int) -> Tensor:
    if lengths.ndim != 1 or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise SignalError(
            f"lengths = {run.lengths!r} is integers (b,), how many tokens of each example are "
            f"real; got {lengths.dtype} {tuple(lengths.shape)}"
        )
    places = torch.arange(length, device=lengths.device)
    if run.padding == "left":
        places = places.flip(0)
    return places < lengths[:, None]
