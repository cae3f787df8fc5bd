"""Read a run: what was logged, step by step, and what its files lack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .._view.contents import Contents
from ..errors import LogError, did_you_mean
from .lines import (
    ATTENTION,
    FORMAT,
    LOG,
    Begin,
    End,
    Entry,
    Facts,
    Look,
    Snapshot,
    Step,
    read,
)
from .snapshots import joined, key_of


class Row(NamedTuple):
    """One logged step.

    Attributes:
        seconds: of training until then, over all programs of the run, without looks.
        line: as it was logged; of a step that was logged twice (its validation, say), together.
        begun: the number of the program that logged it.
    """

    seconds: float
    line: Step
    begun: int


class Reading(NamedTuple):
    """One look."""

    seconds: float
    line: Look


@dataclass
class Run:
    """A run as its files have it.

    Attributes:
        name: its folder.
        begins: one for each program, in order.
        rows: steps in order, each once.
        looks: looks in order.
        ended: when it was closed; None: it runs, or was interrupted.
        attention: where both sides looked; None: nobody asked.
        notes: what was found damaged, or left out, and why.
    """

    name: str
    begins: list[Begin] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    looks: list[Reading] = field(default_factory=list)
    ended: float | None = None
    attention: Contents | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def facts(self) -> Facts:
        """What the last program that knew a distiller said of it."""
        known = [one.facts for one in self.begins if one.facts.terms]
        return known[-1] if known else Facts()


def read_run(folder: str | Path) -> Run:
    """The run of a folder.

    Raises:
        LogError: no such folder, no log in it, an empty one, one of another version.
    """
    folder = Path(folder)
    path = folder / LOG
    if not folder.is_dir():
        raise LogError(_no_folder(folder))
    if not path.is_file():
        within = sorted(one.parent.name for one in folder.glob(f"*/{LOG}"))
        runs = f"; runs in it: {', '.join(map(repr, within))}" if within else ""
        raise LogError(
            f"{str(folder)!r} holds no run: there is no {LOG}, which distillkit.RunLog writes{runs}"
        )
    run = Run(_name(folder))
    _Reader(run).read(path)
    if not run.rows:
        raise LogError(
            f"{str(path)!r} has no logged step"
            + (": the file is empty" if path.stat().st_size == 0 else "")
            + "; a report needs one, run_log.write(result, step=step)"
            + "".join(f"\n  {note}" for note in run.notes)
        )
    if (folder / ATTENTION).is_file():
        _read_attention(run, folder / ATTENTION)
    return run


def _name(folder: Path) -> str:
    return folder.name or folder.resolve().name


def _no_folder(folder: Path) -> str:
    if folder.is_file():
        return f"{str(folder)!r} is a file; a report is of the folder that distillkit.RunLog writes"
    siblings = [str(one.parent) for one in folder.parent.glob(f"*/{LOG}")]
    near = f"; {did_you_mean(str(folder), siblings)}" if siblings else ""
    return f"there is no folder {str(folder)!r}{near}"


class _Reader:
    """Goes through the lines of a log, of which a later program may replace an earlier one's."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._offset = 0.0  # seconds of training before the program that is read
        self._fresh = True  # whether no step of this program was read

    def read(self, path: Path) -> None:
        run = self._run
        for entry in _entries(path, run.notes):
            if isinstance(entry, End):
                run.ended = entry.time
            elif isinstance(entry, Begin) or (
                isinstance(entry, Step) and run.rows and entry.step > run.rows[-1].line.step
            ):
                run.ended = None  # an evaluation of the last step may follow the end
            if isinstance(entry, Begin):
                run.begins.append(entry)
                self._fresh = True
            elif isinstance(entry, Step):
                # an evaluation before the first step belongs to the step that was trained before
                trained = bool(entry.weights or entry.parts) or entry.loss is not None
                self._go_on_at(entry.step if trained or entry.nonfinite else entry.step + 1)
                self._add(entry)
            elif isinstance(entry, Look):
                run.looks.append(Reading(self._offset + entry.elapsed, entry))

    def _go_on_at(self, step: int) -> None:
        """Leave out what an earlier program logged of this step and later ones: trained again."""
        if not self._fresh:
            return
        self._fresh = False
        run = self._run
        kept = [row for row in run.rows if row.line.step < step]
        if len(kept) < len(run.rows):
            run.notes.append(
                f"{len(run.rows) - len(kept)} logged steps, from {run.rows[len(kept)].line.step} "
                f"to {run.rows[-1].line.step}, were trained again by a program that went on at "
                f"step {step}; what it logged is shown"
            )
        run.rows = kept
        run.looks = [one for one in run.looks if one.line.step < step]
        self._offset = kept[-1].seconds if kept else 0.0

    def _add(self, entry: Step) -> None:
        run = self._run
        row = Row(round(self._offset + entry.elapsed, 4), entry, len(run.begins))
        if run.rows and run.rows[-1].line.step == entry.step:
            row = run.rows.pop()
            row = row._replace(line=_together(row.line, entry))
        run.rows.append(row)


def _together(one: Step, other: Step) -> Step:
    """Two lines of one step."""
    lost = {**one.nonfinite, **other.nonfinite}
    has_loss = other.loss is not None or "loss" in other.nonfinite
    return other.model_copy(
        update={
            "loss": other.loss if has_loss else one.loss,
            "parts": {**one.parts, **other.parts},
            "weights": {**one.weights, **other.weights},
            "values": {**one.values, **other.values},
            "nonfinite": lost,
            "memory": {**one.memory, **other.memory},
        }
    )


def _entries(path: Path, notes: list[str]) -> Iterator[Entry]:
    """The entries of a file; a line that cannot be read is a note.

    Raises:
        LogError: another version.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = read(line)
            except ValueError as error:
                cut = " The program was stopped while it wrote it." if _is_cut(line) else ""
                notes.append(f"{path.name}, line {number}, is left out: {error}.{cut}")
                continue
            if isinstance(entry, int):
                raise LogError(
                    f"{str(path)!r}, line {number}, is of format {entry}, and this distillkit "
                    f"reads format {FORMAT}: make the report with the version that wrote it"
                )
            yield entry


def _is_cut(line: bytes) -> bool:
    """Whether it begins as an entry does, and does not end as one."""
    return line.startswith(b'{"') and not line.rstrip().endswith(b"}")


def _read_attention(run: Run, path: Path) -> None:
    texts: dict[str, str] = {}
    found: list[Snapshot] = []
    for entry in _entries(path, run.notes):
        if not isinstance(entry, Snapshot):
            run.notes.append(f"{path.name} holds a line {entry.kind!r}, which is left out")
            continue
        texts.update({key: text for key, text in entry.new.items() if key_of(text) == key})
        missing = [key for key in (entry.facts, *entry.texts) if key not in texts]
        if missing:
            run.notes.append(
                f"attention of step {entry.step} is not shown: a line that it refers to is damaged"
            )
            continue
        found = [one for one in found if one.step < entry.step]  # trained again
        found.append(entry)
    last = run.rows[-1].line.step
    found = [one for one in found if one.step <= last]
    if found:
        run.attention, notes = joined(found, texts)
        run.notes += notes
