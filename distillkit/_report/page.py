"""The report as one page: data as JSON, curves by a script, attention by the viewer's page."""

from __future__ import annotations

import html
import itertools
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from .._view.page import as_json, filled, page_of
from .findings import findings
from .lines import Begin, ModelFacts
from .reading import Row, Run

_VIEW = "distillkit._view"
_ROWS = 20_000  # of one run in a page; the log has all


def report_of(runs: Sequence[Run]) -> str:
    """One HTML file about one run, or several beside each other."""
    labels = _labels([run.name for run in runs])
    facts = {
        "runs": [_run_facts(run, label) for run, label in zip(runs, labels, strict=True)],
        "citations": "\n\n".join(dict.fromkeys(_citations(runs))),
    }
    frames = [_frame(run, label) for run, label in zip(runs, labels, strict=True) if run.attention]
    return filled(__package__, (_VIEW,), facts=as_json(facts), frames="\n".join(frames))


def _labels(names: Sequence[str]) -> list[str]:
    """A label for each run: its name, with a number where two have one."""
    seen: dict[str, int] = {}
    labels = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return labels


def _frame(run: Run, label: str) -> str:
    """The viewer's page in a frame; what it holds is escaped twice, here and there."""
    assert run.attention is not None
    title = html.escape(f"Attention of the watched examples: {label}", quote=True)
    page = html.escape(page_of(run.attention), quote=True)
    return (
        f'<figure class="frame"><figcaption>{html.escape(label)}</figcaption>'
        f'<iframe title="{title}" srcdoc="{page}"></iframe></figure>'
    )


def _citations(runs: Iterable[Run]) -> Iterable[str]:
    for run in runs:
        yield from filter(None, run.facts.citations.split("\n\n"))


def _run_facts(run: Run, label: str) -> dict[str, Any]:
    facts = run.facts
    rows, notes = _thinned(run.rows)
    found = [one._asdict() for one in findings(run)]
    return {
        "label": label,
        "summary": _summary(run),
        "findings": found + [{"kind": "note", "text": note} for note in notes],
        "terms": [one.model_dump() for one in facts.terms],
        "compared": [one.model_dump() for one in facts.compared],
        "recipe": None if facts.recipe is None else facts.recipe.model_dump(),
        "rows": _columns(rows),
        "looks": _looks(run),
    }


def _thinned(rows: Sequence[Row]) -> tuple[Sequence[Row], list[str]]:
    """As many rows as a page can hold; those that are not finite stay."""
    if len(rows) <= _ROWS:
        return rows, []
    every = -(-len(rows) // _ROWS)
    kept = [
        row
        for i, row in enumerate(rows)
        if i % every == 0 or i == len(rows) - 1 or row.line.nonfinite
    ]
    return kept, [f"{len(kept)} of {len(rows)} logged steps are shown; the log has all of them"]


def _columns(rows: Sequence[Row]) -> dict[str, Any]:
    """Every curve as a column: null where it was not logged, or ``nonfinite`` says what it was."""
    lines = [row.line for row in rows]
    columns: dict[str, Any] = {
        "step": [line.step for line in lines],
        "seconds": [row.seconds for row in rows],
        "loss": [line.loss for line in lines],
    }
    for group in ("parts", "weights", "values"):
        held = [getattr(line, group) for line in lines]
        names = dict.fromkeys(name for one in held for name in one)
        columns[group] = {name: [one.get(name) for one in held] for name in names}
    lost: dict[str, dict[int, str]] = {}
    for i, line in enumerate(lines):
        for name, was in line.nonfinite.items():
            lost.setdefault(name, {})[i] = was
    columns["nonfinite"] = lost
    return columns


def _looks(run: Run) -> dict[str, Any]:
    lines = [one.line for one in run.looks]
    names = dict.fromkeys(name for line in lines for name in (*line.own, *line.wrong))
    lost: dict[str, dict[int, str]] = {}
    for i, line in enumerate(lines):
        for name, was in line.nonfinite.items():
            lost.setdefault(name, {})[i] = was
    return {
        "step": [line.step for line in lines],
        "seconds": [round(one.seconds, 4) for one in run.looks],
        "own": {name: [line.own.get(name) for line in lines] for name in names},
        "wrong": {name: [line.wrong.get(name) for line in lines] for name in names},
        "nonfinite": lost,
    }


# ------------------------------------------------------------------------------------ summary


def _summary(run: Run) -> list[list[str]]:
    """Rows of heading and text, for the table of all runs."""
    facts = run.facts
    first, last = run.rows[0], run.rows[-1]
    begin = run.begins[-1] if run.begins else None
    table = {
        "Recipe": facts.recipe.name if facts.recipe else "",
        "Steps": f"{first.line.step} to {last.line.step}, {len(run.rows)} logged",
        "Loss": _first_to_last(run),
        "Training time": _duration(last.seconds),
        "Time of a step": _time_of_step(run.rows),
        "Time of looks": _looking(run),
        "Student": _size(facts.student),
        "Teacher": ", ".join(map(_size, facts.teachers)) or ("none ran" if facts.student else ""),
        "Aligners": f"{facts.aligners:,} parameters" if facts.aligners else "",
        "Most memory": _memory(run),
        "Device": _device(facts.device, 1 if begin is None else begin.ranks),
        "Versions": _versions(begin),
        "Began": _date(run.begins[0].time) if run.begins else "",
        "Ended": "" if run.ended is None else _date(run.ended),
    }
    return [[name, text] for name, text in table.items()]


def _versions(begin: Begin | None) -> str:
    return "" if begin is None else ", ".join(f"{k} {v}" for k, v in begin.versions.items())


def _first_to_last(run: Run) -> str:
    losses = [row.line.loss for row in run.rows if row.line.loss is not None]
    return f"{losses[0]:.4g} to {losses[-1]:.4g}" if losses else ""


def _time_of_step(rows: Sequence[Row]) -> str:
    """The median over what was logged within one program."""
    pairs = [
        (one, other)
        for one, other in itertools.pairwise(rows)
        if one.begun == other.begun and other.line.step > one.line.step
    ]
    if not pairs:
        return ""
    times = [(b.seconds - a.seconds) / (b.line.step - a.line.step) for a, b in pairs]
    return f"{_duration(statistics.median(times))} (median)"


def _looking(run: Run) -> str:
    if not run.looks:
        return ""
    total = sum(one.line.seconds for one in run.looks)
    return f"{_duration(total)} in {len(run.looks)}, not part of the training time"


def _size(model: ModelFacts | None) -> str:
    if model is None:
        return ""
    trained = ""
    if 0 < model.trained < model.parameters:
        trained = f", {model.trained:,} of them trained"
    return f"{model.name}, {model.parameters:,} parameters{trained}"


def _memory(run: Run) -> str:
    most: dict[str, int] = {}
    for row in run.rows:
        for place, size in row.line.memory.items():
            most[place] = max(size, most.get(place, 0))
    names = {"device": "on the device", "host": "in the process"}
    return ", ".join(f"{size / 2**20:,.0f} MiB {names.get(k, k)}" for k, size in most.items())


def _device(device: str, ranks: int) -> str:
    return device + (f", {ranks} processes" if ranks > 1 else "")


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"


def _date(time: float) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, OSError, ValueError):
        return ""
