"""Tables of the study, made of the lines that its runs left: of those that there are."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from .lines import read_lines
from .plan import Study
from .recipes import METHODS
from .timing import WAYS

Line = Mapping[str, Any]
LINES_OF_DOCS = "docs/pictures.jsonl"
PAGE = "docs/pictures.md"
SHOWN = {"seen": "seen artists", "test": "new artists", "new_concepts": "new concepts"}
TEACHER = "teacher"
TITLES = {
    "vqa": "questions (VQA)",
    "ve": "entailment",
    "nlvr2": "two scenes (NLVR2)",
    "retrieval": "names (retrieval)",
}


@dataclass(frozen=True)
class Results:
    """The lines of one study.

    Attributes:
        study: what was to be done.
        lines: those that fit its present settings, in its order.
    """

    study: Study
    lines: Sequence[Line]

    def of(self, task: str, method: str) -> list[Line]:
        """The lines of a method on a task, seed by seed."""
        return [one for one in self.lines if (one["task"], one["method"]) == (task, method)]

    @property
    def tasks(self) -> list[str]:
        """Tasks with a teacher and a student at least."""
        return [
            task for task in self.study.tasks
            if self.of(task, TEACHER) and any(self.of(task, method) for method in METHODS)
        ]  # fmt: skip


def read_results(path: Path, study: Study) -> Results:
    """The lines that belong to the study's present settings; others are old."""
    found = {line["digest"]: line for line in read_lines(path)}
    runs = study.runs()
    return Results(study, [found[run.digest] for run in runs if run.digest in found])


def percent(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, in percent."""
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ------------------------------------------------------------------------------------ the tables


def comparison(results: Results) -> str:
    """Every method on every task."""
    rows = []
    for task in results.tasks:
        for method in (TEACHER, *METHODS):
            lines = results.of(task, method)
            if lines:
                shares = [percent([line["accuracy"][s] for line in lines]) for s in SHOWN]
                spent = statistics.mean(line["cpu_seconds"] for line in lines)
                steps = str(lines[0]["steps"])
                if method == "pre-trained DiDE":
                    steps = f"{results.study.pretraining.student_steps} + {steps}"
                row = [TITLES[task], method, *shares, steps, f"{spent:.0f}", str(len(lines))]
                rows.append(row)
    head = ("task", "model", *SHOWN.values(), "steps", "CPU-s", "seeds")
    return table(head, rows)


def sight(results: Results) -> str:
    """How many single drawings perception tells the classes of."""
    head = ("training", "seen artists, other drawings", "validation", "new artists", "new concepts")
    splits = ("train", "seen", "validation", "test", "new_concepts")
    lines = results.of("", "perception")
    return table(head, [[percent([line["accuracy"][s]]) for s in splits] for line in lines])


def gains(results: Results) -> str:
    """What each step from one method to the next adds, seed by seed, on new artists."""
    rows = []
    for task in results.tasks:
        for one, other in pairwise(METHODS):
            found = _differences(results.of(task, one), results.of(task, other))
            if found:
                each = " ".join(f"{100 * gain:+.1f}" for gain in found)
                sign = _verdict(found)
                rows.append([TITLES[task], f"{one} → {other}", each, sign])
    return table(("task", "from → to", "points, each seed", "verdict"), rows)


def _differences(ones: Sequence[Line], others: Sequence[Line]) -> list[float]:
    first = {line["seed"]: line["accuracy"]["test"] for line in ones}
    second = {line["seed"]: line["accuracy"]["test"] for line in others}
    return [second[seed] - first[seed] for seed in first if seed in second]


def _verdict(gains: Sequence[float]) -> str:
    """In words, and no more than the seeds say."""
    if len(gains) < 2:
        return "one seed: no verdict"
    if all(gain > 0 for gain in gains):
        return "better in every seed"
    return "worse in every seed" if all(gain < 0 for gain in gains) else "seeds disagree"


def speed(results: Results) -> str:
    """What answers cost, task by task."""
    rows = []
    for line in (line for line in results.lines if "timed" in line):
        fused = line["timed"][WAYS[0]]
        cells = [f"{fused / line['timed'][way]:.1f}" for way in WAYS[1:]]
        rows.append([TITLES[line["task"]], f"{1000 * fused:.0f}", *cells])
    short = ("nothing reused", "each side once", "both stored")
    return table(("task", "fusion (CPU-ms)", *short), rows)


def timed(results: Results) -> str:
    """What is timed, in words."""
    settings = results.study.timing
    return (
        f"{settings.texts} texts about each of {settings.scenes} scenes (of pairs, in NLVR2), on "
        "one thread: how many times\nfaster than the fusion encoder the dual encoder is."
    )


def whole(results: Results) -> str:
    """How much of the study these lines are, and where they come from."""
    runs = sum(1 for _ in results.study.runs())
    spent = sum(line["all_cpu_seconds"] for line in results.lines)
    machines = sorted({f"{line['machine']}, torch {line['torch']}" for line in results.lines})
    missing = [TITLES[task] for task in results.study.tasks if task not in results.tasks]
    absent = f" No student has been trained yet on {', '.join(missing)}." if missing else ""
    return (
        f"{len(results.lines)} of the {runs} runs of the study are in these tables; they took "
        f"{spent / 60:.0f} CPU minutes. Measured on: {'; '.join(machines)}.{absent}"
    )


BLOCKS: Mapping[str, Callable[[Results], str]] = {
    "pictures_comparison": comparison,
    "pictures_sight": sight,
    "pictures_gains": gains,
    "pictures_timed": timed,
    "pictures_speed": speed,
    "pictures_whole": whole,
}


def written(text: str, results: Results) -> str:
    """A document with the study's tables as the results have them."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- begin {name} -->\n\n{BLOCKS[name](results)}\n\n<!-- end {name} -->"

    names = "|".join(BLOCKS)
    return re.sub(rf"<!-- begin ({names}) -->.*?<!-- end \1 -->", block, text, flags=re.DOTALL)


def publish(study: Study, path: Path, root: Path) -> None:
    """The lines, and the tables of the page, into the documentation."""
    results = read_results(path, study)
    kept = "".join(json.dumps(line) + "\n" for line in results.lines)
    (root / LINES_OF_DOCS).write_text(kept, encoding="utf-8")
    page = root / PAGE
    page.write_text(written(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    print(f"{LINES_OF_DOCS} and {PAGE} show {len(results.lines)} runs", flush=True)
