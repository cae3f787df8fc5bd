"""From the runs that an adapter file states to the tokens of one forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SignalError
from .adapter_file import hosts_of
from .joined_runs import join_runs
from .layout import ModalityTokens, StreamTokens
from .patch_cells import Cells, cells_of
from .pictures import images_of
from .run_entries import RunEntries
from .run_facts import Span, real_tokens, tokens_of_run
from .token_run import TokenRun


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
    entries = [RunEntries(run, batch, pairs.get(run.modality) if meet else None) for run in runs]
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
        tokens, real[i] = tokens_of_run(one, positions, spans[_host(i, hosts)])
        by_modality.setdefault(one.run.modality, []).append(tokens)
    joined = {
        modality: join_runs(parts, length, examples) for modality, parts in by_modality.items()
    }
    return StreamTokens(joined, _valid(entries, hosts, spans, real))


def _spans(entries: Sequence[RunEntries], hosts: Sequence[int | None]) -> list[Span]:
    """Where each run lies; marked runs lie where their host does, or in the whole sequence."""
    found: dict[int, Span] = {}
    start = 0
    for i, one in enumerate(entries):
        if one.run.where is None:
            cells = _own_cells(one) if one.run.has_grid else None
            stop = start + (_length(one) if cells is None else cells.length)
            found[i] = Span(start, stop, cells)
            start = stop
    if not found:
        lengths = {str(one.run.where): _marks(one).shape[1] for one in entries}
        if len(set(lengths.values())) > 1:
            raise SignalError(f"`where` entries of one sequence have unequal lengths: {lengths}")
        return [Span(0, next(iter(lengths.values())))] * len(entries)
    return [found[i] if i in found else found[_host(i, hosts)] for i in range(len(entries))]


def _host(i: int, hosts: Sequence[int | None]) -> int:
    host = hosts[i]
    return i if host is None else host


def _own_cells(one: RunEntries) -> Cells:
    """The patches of a run that is not marked."""
    length = None if one.run.length is None else _length(one)
    return cells_of(one.run, images_of(one.run, one.read, None), length)


def _length(one: RunEntries) -> int:
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


def _marks(one: RunEntries) -> Tensor:
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
    entries: Sequence[RunEntries], hosts: Sequence[int | None], spans: Sequence[Span], length: int
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


def _shared(marks: Tensor, entries: Sequence[RunEntries]) -> list[Tensor]:
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


def _count(one: RunEntries, device: torch.device) -> int | Tensor:
    """How many marked tokens a run takes: a number, or ``(b, 1)``."""
    if not one.run.has_grid:
        return int(one.run.length or 0)
    counts = cells_of(one.run, images_of(one.run, one.read, None), None).counts
    return counts[0] if len(counts) == 1 else torch.tensor(counts, device=device)[:, None]


def _rest(
    i: int,
    hosts: Sequence[int | None],
    marked: Mapping[int, Tensor],
    span: Span,
    length: int,
) -> Tensor:
    """The tokens of a run that no other one marks."""
    inside = torch.stack([marks for j, marks in marked.items() if hosts[j] == i]).any(0)
    own = inside.new_zeros(length)
    own[span.as_slice] = True
    return own & ~inside


def _valid(
    entries: Sequence[RunEntries],
    hosts: Sequence[int | None],
    spans: Sequence[Span],
    real: Sequence[Tensor | None],
) -> Tensor | None:
    """Which tokens of the sequence are no padding; a run without a mask has none."""
    found: dict[tuple[int, int], list[Tensor]] = {}
    for i, one in enumerate(entries):
        span = spans[_host(i, hosts)]
        masks = found.setdefault((span.start, span.stop), [])
        mask = real_tokens(one, span)
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
