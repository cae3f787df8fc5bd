"""Tables of the study, made of the lines that its runs left."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study_plan import Part, Student, Study
from timing import WAYS

Line = Mapping[str, Any]
DOCUMENTS = ("README.md", "docs/results.md", "docs/how-to/distil-attention.md")
FUSED, NOT_REUSED, ONCE, STORED = WAYS


@dataclass(frozen=True)
class Results:
    """The lines of one study, each once, and which run is which line."""

    study: Study
    lines: Mapping[str, Line]  # by digest
    digests: Mapping[str, str]  # by run

    def __getitem__(self, run: str) -> Line:
        """The line of a run: equal settings were trained once."""
        return self.lines[self.digests[run]]

    def of(self, name: str, steps: int, seeds: Iterable[int]) -> list[Line]:
        """The lines of one model at one number of steps, seed by seed."""
        return [self[f"{name}/{steps}/{seed}"] for seed in seeds]

    def students(self, *parts: Part) -> list[Student]:
        """Those of some parts, in the order of the study file."""
        return [one for one in self.study.students if one.part in parts]


def read_results(path: Path, study: Study) -> Results:
    """The lines that belong to the study's present settings.

    Raises:
        SystemExit: some are missing.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = {line["digest"]: line for line in map(json.loads, text.splitlines())}
    tested = {digest for digest, line in lines.items() if "test" in line}
    runs = list(study.runs())
    absent = [r.key for r in runs if r.digest not in (tested if r.is_tested else lines)]
    timings = study.throughput.runs()
    absent += [one.key for one in timings if one.digest not in lines]
    if absent:
        raise SystemExit(f"{path} lacks {len(absent)} runs, the first is {absent[0]!r}")
    digests = {one.key: one.digest for one in (*runs, *timings)}
    return Results(study, {d: lines[d] for d in digests.values()}, digests)


def percent(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def accuracies(lines: Sequence[Line], where: str = "test") -> list[float]:
    """One for each seed."""
    return [line[where]["all"] for line in lines]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _row(name: str, lines: Sequence[Line], where: str = "test") -> list[str]:
    values = accuracies(lines, where)
    each = " ".join(f"{100 * value:.1f}" for value in values)
    seconds = statistics.mean(line["cpu_seconds"] for line in lines)
    return [name, percent(values), each, f"{seconds:.0f}"]


_HEAD = ("test accuracy (%)", "each seed", "CPU-s")


def comparison(results: Results) -> str:
    """Every method at every number of steps."""
    students = results.students("comparison")
    teacher = results.study.teachers[0]
    seeds = students[0].seeds
    rows = [[str(teacher.steps), *_row("teacher", results.of(teacher.name, teacher.steps, seeds))]]
    rows += [
        [str(steps), *_row(one.name, results.of(one.name, steps, one.seeds))]
        for steps in students[0].steps
        for one in students
    ]
    return table(("steps", "method", *_HEAD), rows)


def equal_time(results: Results) -> str:
    """Soft labels for as long as DiDE takes."""
    shown = [one for one in results.students("comparison") if one.name != "alone"]
    rows = [
        [str(steps), *_row(one.name, results.of(one.name, steps, one.seeds))]
        for one in (*shown, *results.students("equal time"))
        for steps in one.steps
    ]
    rows.sort(key=lambda row: float(row[-1]))
    return table(("steps", "method", *_HEAD), rows)


def of_parts(results: Results, *parts: Part) -> str:
    """Models of a part, and what each is for."""
    rows = [
        [str(steps), *_row(one.name, results.of(one.name, steps, one.seeds)), one.note]
        for one in results.students(*parts)
        for steps in one.steps
    ]
    return table(("steps", "model", *_HEAD, "what it is"), rows)


def search(results: Results) -> str:
    """What was tried, by validation accuracy."""
    tried = results.students("search")
    known = [one for one in results.students("comparison") if one.name in BEFORE_SEARCH]
    rows = [(one, results.of(one.name, tried[0].steps[0], one.seeds)) for one in (*known, *tried)]
    rows.sort(key=lambda row: -statistics.mean(accuracies(row[1], "validation")))
    cells = [[*_row(one.name, lines, "validation"), one.note] for one, lines in rows]
    return table(("model", "validation accuracy (%)", "each seed", "CPU-s", "what changed"), cells)


BEFORE_SEARCH = ("soft labels", "DiDE", "DiDE, half")


def final(results: Results) -> str:
    """The comparison with the settings that the search chose, five seeds."""
    students = results.students("final")
    teacher = next(one for one in results.study.teachers if one.name == students[0].teacher)
    lines = results.of(teacher.name, teacher.steps, students[0].seeds)
    taught = accuracies(lines)
    rows = [[*_row(teacher.name, lines), "", f"{teacher.steps} steps"]]
    for one in students:
        lines = results.of(one.name, one.steps[0], one.seeds)
        gaps = [t - s for t, s in zip(taught, accuracies(lines), strict=True)]
        rows.append([*_row(one.title or one.name, lines), percent(gaps), one.note])
    return table(("model", *_HEAD, "behind its teacher (points)", "what it is"), rows)


def throughput(results: Results) -> str:
    """How many times faster than the fusion encoder."""
    rows = []
    for timing in results.study.throughput.runs():
        for n, m, seconds in results[timing.key]["grid"]:
            if n in SHOWN_SCENES and m in SHOWN_QUESTIONS:
                ratios = [seconds[FUSED] / seconds[way] for way in (NOT_REUSED, ONCE, STORED)]
                cells = [f"{1000 * seconds[FUSED]:.1f}", *(f"{ratio:.1f}" for ratio in ratios)]
                rows.append([str(timing.depth), str(n), str(m), *cells])
    head = ("blocks", "N", "M", "fusion (ms)", "nothing reused", "each side once", "both stored")
    return table(head, rows)


SHOWN_SCENES, SHOWN_QUESTIONS = (1, 16, 128), (1, 4, 36)


def crossover(results: Results) -> str:
    """From how many questions on a dual encoder is the faster one."""
    grids = {t.depth: results[t.key]["grid"] for t in results.study.throughput.runs()}
    scenes = results.study.throughput.scenes
    rows = []
    for depth, grid in grids.items():
        cells = []
        for n in scenes:
            faster = [m for k, m, s in grid if k == n and s[ONCE] <= s[FUSED]]
            cells.append(str(min(faster)) if faster else "never")
        rows.append([str(depth), *cells])
    return table(("blocks", *(f"N = {n}" for n in scenes)), rows)


def costs(results: Results) -> str:
    """CPU minutes of a seed of everything, all told."""
    seeds = sorted({seed for one in results.study.students for seed in one.seeds})
    rows = []
    for seed in seeds:
        runs = [run for run in results.study.runs() if run.seed == seed]
        lines = {run.digest: results[run.key] for run in runs}
        spent = {
            digest: line["cpu_seconds"] + line["other_cpu_seconds"]
            for digest, line in lines.items()
        }
        tested = {run.digest for run in runs if run.is_tested}
        search = sum(seconds for digest, seconds in spent.items() if digest not in tested)
        rest = sum(spent.values()) - search
        rows.append([str(seed), f"{rest / 60:.0f}", f"{search / 60:.0f}", str(len(spent))])
    return table(("seed", "CPU minutes", "CPU minutes of the search", "models"), rows)


def where(results: Results) -> str:
    """The machine that the lines name."""
    lines = results.lines.values()
    machines = sorted({f"{line['machine']}, torch {line['torch']}" for line in lines})
    return "Measured on: " + "; ".join(machines) + "."


def in_short(results: Results) -> str:
    """The methods in one line each."""
    students = results.students("comparison")
    steps, seeds = students[0].steps, students[0].seeds
    teacher = results.study.teachers[0]
    taught = percent(accuracies(results.of(teacher.name, teacher.steps, seeds)))
    rows = [["teacher (fusion encoder)", *[taught] * len(steps)]]
    for one in students:
        found = [percent(accuracies(results.of(one.name, n, seeds))) for n in steps]
        rows.append([LONG_NAMES.get(one.name, one.name), *found])
    return table(("test accuracy (%)", *(f"{n} steps" for n in steps)), rows)


LONG_NAMES = {
    "alone": "dual encoder alone",
    "soft labels": "+ soft labels",
    "DiDE": "+ soft labels and attention (DiDE)",
    "DiDE, half": "the same, attention in the first half only",
}


def speed(results: Results) -> str:
    """What the largest grid of the shallowest models costs."""
    timing = results.study.throughput.runs()[0]
    n, m, seconds = results[timing.key]["grid"][-1]
    fused, apart, once = (seconds[way] for way in (FUSED, NOT_REUSED, ONCE))
    return (
        f"Answering {m} questions about each of {n} scenes on one thread takes the fusion encoder\n"
        f"{1000 * fused:.0f} ms and the dual encoder {1000 * once:.0f} ms when every question and "
        f"every scene is encoded once\n({fused / once:.0f} times faster). When nothing is reused "
        f"it takes {1000 * apart:.0f} ms: the gain is the reuse."
    )


BLOCKS: dict[str, Callable[[Results], str]] = {
    "study_in_short": in_short,
    "study_speed": speed,
    "study_comparison": comparison,
    "study_equal_time": equal_time,
    "study_ablation": lambda results: of_parts(results, "ablation", "control"),
    "study_search": search,
    "study_final": final,
    "study_throughput": throughput,
    "study_crossover": crossover,
    "study_costs": costs,
    "study_machine": where,
}


def written(text: str, results: Results) -> str:
    """A document with the study's tables as the results have them."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- begin {name} -->\n\n{BLOCKS[name](results)}\n\n<!-- end {name} -->"

    pattern = r"<!-- begin (study_\w+) -->.*?<!-- end \1 -->"
    return re.sub(pattern, block, text, flags=re.DOTALL)
