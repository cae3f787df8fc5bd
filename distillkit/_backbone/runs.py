"""From the runs that an adapter file states to the tokens of one forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._transfer import trackable
from ..errors import ShapeError, SignalError, did_you_mean
from .adapter_file import hosts_of
from .joined_runs import join_runs
from .layout import ModalityTokens, StreamTokens
from .pictures import Cells, cells_of, extents_of, images_of
from .token_run import TokenRun
from .tokens import chosen, select_tokens


def stream_tokens(
    runs: Sequence[TokenRun],
    batch: Mapping[str, Any],
    pairs: Mapping[str, Tensor],
    examples: Callable[[], int],
) -> StreamTokens:
    """The tokens of one stream.

    Args:
        runs: what the file says of it.
        batch: the entries of this forward.
        pairs: modality -> index, where texts and images are encoded once and paired.
        examples: how many sequences there are, asked for where no entry says it.

    Raises:
        SignalError: the batch does not have what the file says; the entry and the run are named.
    """
    # where words and patches meet, every pair has its own sequence
    meet = {"text", "image"} <= {run.modality for run in runs}
    entries = [_Entries(run, batch, pairs.get(run.modality) if meet else None) for run in runs]
    hosts = hosts_of(runs)
    spans = _spans(entries, hosts)
    length = spans[-1].stop if spans else 0
    marked = _marked(entries, hosts, spans, length)
    by_modality: dict[str, list[ModalityTokens]] = {}
    real: list[Tensor | None] = [None] * len(runs)
    for i, one in enumerate(entries):
        positions = marked.get(i, spans[i].as_slice)
        if i not in marked and i in hosts:
            positions = _rest(i, hosts, marked, spans[i], length)
        tokens, real[i] = _tokens(one, positions, spans[_host(i, hosts)])
        by_modality.setdefault(one.run.modality, []).append(tokens)
    joined = {
        modality: join_runs(parts, length, examples) for modality, parts in by_modality.items()
    }
    return StreamTokens(joined, _valid(entries, hosts, spans, real))


class _Span(NamedTuple):
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


class _Entries(NamedTuple):
    """A run, and the entries of the batch in the order of its examples."""

    run: TokenRun
    batch: Mapping[str, Any]
    example_index: Tensor | None

    def read(self, key: str) -> Tensor:
        """An entry, example by example."""
        value = entry(self.batch, key)
        if not isinstance(value, Tensor):
            raise SignalError(
                f"the {self.run.modality} run reads the batch entry {key!r}, which is "
                f"{type(value).__name__}; expected a tensor"
            )
        return chosen(value, self.example_index) if value.ndim else value

    def known(self, key: str | None) -> Tensor | None:
        """An entry that may be None, which says that it is absent."""
        if key is None or (self.batch.get(key) is None and is_none(self.batch, key)):
            return None
        return self.read(key)


def _spans(entries: Sequence[_Entries], hosts: Sequence[int | None]) -> list[_Span]:
    """Where each run lies; marked runs lie where their host does, or in the whole sequence."""
    found: dict[int, _Span] = {}
    start = 0
    for i, one in enumerate(entries):
        if one.run.where is None:
            cells = _own_cells(one) if one.run.has_grid else None
            stop = start + (_length(one) if cells is None else cells.length)
            found[i] = _Span(start, stop, cells)
            start = stop
    if not found:
        lengths = {str(one.run.where): _marks(one).shape[1] for one in entries}
        if len(set(lengths.values())) > 1:
            raise SignalError(f"`where` entries of one sequence have unequal lengths: {lengths}")
        return [_Span(0, next(iter(lengths.values())))] * len(entries)
    return [found[i] if i in found else found[_host(i, hosts)] for i in range(len(entries))]


def _host(i: int, hosts: Sequence[int | None]) -> int:
    host = hosts[i]
    return i if host is None else host


def _own_cells(one: _Entries) -> Cells:
    """The patches of a run that is not marked."""
    length = None if one.run.length is None else _length(one)
    return cells_of(one.run, images_of(one.run, one.read, None), length)


def _length(one: _Entries) -> int:
    length = one.run.length
    if isinstance(length, int):
        return length
    value = one.read(str(length))
    if value.ndim < 2:
        raise SignalError(
            f"length = {length!r}: the second axis of the entry is the length of the "
            f"{one.run.modality} run, and it has the shape {tuple(value.shape)}"
        )
    return value.shape[1]


def _marks(one: _Entries) -> Tensor:
    """Where the entry has one of the run's values: boolean ``(b, n)``."""
    value = one.read(str(one.run.where))
    if value.ndim != 2 or value.is_floating_point():
        raise SignalError(
            f"where = {one.run.where!r}: the entry marks tokens by integers (b, n); got "
            f"{value.dtype} {tuple(value.shape)}"
        )
    wanted = one.run.equals or ()
    if len(wanted) == 1:
        return value == wanted[0]
    return torch.isin(value, torch.tensor(wanted, dtype=value.dtype, device=value.device))


def _marked(
    entries: Sequence[_Entries], hosts: Sequence[int | None], spans: Sequence[_Span], length: int
) -> dict[int, Tensor]:
    """Run -> its positions in the sequence, boolean ``(b, n)``, of the runs that are marked."""
    shares: dict[tuple[str | None, tuple[int, ...] | None], list[int]] = {}
    for i, one in enumerate(entries):
        if one.run.where is not None:
            shares.setdefault((one.run.where, one.run.equals), []).append(i)
    found = {}
    for indices in shares.values():
        first = indices[0]
        marks, span = _marks(entries[first]), spans[first]
        if marks.shape[1] != span.length:
            host = entries[_host(first, hosts)].run
            raise SignalError(
                f"where = {entries[first].run.where!r} marks {marks.shape[1]} tokens, but the run "
                f"that they lie in ({host.modality}) has {span.length}: give the run whose tokens "
                f"it marks `length` = {entries[first].run.where!r}"
            )
        for i, own in zip(indices, _shared(marks, [entries[i] for i in indices]), strict=True):
            whole = own.new_zeros(len(own), length)
            whole[:, span.as_slice] = own
            found[i] = own if span.length == length else whole
    return found


def _shared(marks: Tensor, entries: Sequence[_Entries]) -> list[Tensor]:
    """The marked tokens, shared out in order among the runs that say the same marks."""
    if len(entries) == 1:
        return [marks]
    rank = marks.long().cumsum(1)
    start: int | Tensor = 0
    found = []
    for one in entries[:-1]:
        stop = start + _count(one, marks.device)
        found.append(marks & (rank > start) & (rank <= stop))
        start = stop
    return [*found, marks & (rank > start)]


def _count(one: _Entries, device: torch.device) -> int | Tensor:
    """How many marked tokens a run takes: a number, or ``(b, 1)``."""
    if not one.run.has_grid:
        return int(one.run.length or 0)
    counts = cells_of(one.run, images_of(one.run, one.read, None), None).counts
    return counts[0] if len(counts) == 1 else torch.tensor(counts, device=device)[:, None]


def _rest(
    i: int,
    hosts: Sequence[int | None],
    marked: Mapping[int, Tensor],
    span: _Span,
    length: int,
) -> Tensor:
    """The tokens of a run that no other one marks."""
    inside = torch.stack([marks for j, marks in marked.items() if hosts[j] == i]).any(0)
    own = inside.new_zeros(length)
    own[span.as_slice] = True
    return own & ~inside


def _tokens(
    one: _Entries, positions: slice | Tensor, span: _Span
) -> tuple[ModalityTokens, Tensor | None]:
    """One run's tokens with what is known of them; and which are no padding, by their grids."""
    run = one.run

    def select(x: Tensor | None) -> Tensor | None:
        """At these tokens, of what is known of all tokens of the part that they lie in."""
        if x is None or not isinstance(positions, Tensor) or x.shape[1] != span.length:
            return x
        return select_tokens(x, positions[:, span.as_slice])

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


def _marked_cells(one: _Entries, counts: _Counts) -> Cells:
    """The patches of marked tokens; where their sizes come from the batch, as many as are marked.

    Raises:
        SignalError: more or fewer are marked.
    """
    cells = cells_of(one.run, images_of(one.run, one.read, counts), None)
    if one.run.fixed_count is not None:
        return cells  # the axis of these tokens is counted when it is asked for
    found = counts()
    expected = cells.counts * len(found) if len(cells.counts) == 1 else cells.counts
    wrong = [i for i, count in enumerate(found) if i >= len(expected) or count != expected[i]]
    if wrong or len(expected) != len(found):
        example = wrong[0] if wrong else len(found)
        patches = expected[example] if example < len(expected) else 0
        raise SignalError(
            f"where = {one.run.where!r} marks {found[example] if wrong else 0} {one.run.modality} "
            f"tokens of example {example}, but its images make {patches}"
        )
    return cells


def _extents(
    one: _Entries, cells: Cells | None, count: int | Callable[[], Sequence[int]]
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


def _real_cells(one: _Entries, cells: Cells) -> Tensor:
    """Which tokens of a run are patches, where examples have unequally many."""
    named = next(key for key in (one.run.grid, one.run.tiles) if isinstance(key, str))
    device = one.read(named).device
    counts = torch.tensor(cells.counts, device=device)
    return torch.arange(cells.length, device=device) < counts[:, None]


def _ids(one: _Entries, span: _Span) -> Tensor | None:
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


def _valid(
    entries: Sequence[_Entries],
    hosts: Sequence[int | None],
    spans: Sequence[_Span],
    real: Sequence[Tensor | None],
) -> Tensor | None:
    """Which tokens of the sequence are no padding; a run without a mask has none."""
    found: dict[tuple[int, int], list[Tensor]] = {}
    for i, one in enumerate(entries):
        span = spans[_host(i, hosts)]
        masks = found.setdefault((span.start, span.stop), [])
        mask = _mask(one, span)
        if mask is None and real[i] is not None:
            mask = real[i]
        if mask is not None:
            masks.append(mask)
    given = next((masks[0] for masks in found.values() if masks), None)
    if given is None:
        return None
    size = max(len(mask) for masks in found.values() for mask in masks)
    parts = []
    for (start, stop), masks in sorted(found.items()):
        part = given.new_ones(size, stop - start)
        for mask in masks:
            part = part & mask.to(part.device)
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _mask(one: _Entries, span: _Span) -> Tensor | None:
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


def is_none(batch: Mapping[str, Any], key: str) -> bool:
    """Whether an entry is there and says by None that it is absent."""
    says_none = getattr(batch, "says_none", None)
    if says_none is not None:
        return bool(says_none(key))
    return key in batch and batch[key] is None


def entry(batch: Mapping[str, Any], key: str) -> Any:
    """An entry of the batch, or an error that says which was meant."""
    value = batch.get(key)
    if value is None and key not in batch:
        raise SignalError(f"the batch has no entry {key!r}; {did_you_mean(key, batch)}")
    return value
