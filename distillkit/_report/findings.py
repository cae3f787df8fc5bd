"""What a reader of a run should know before its curves: what went wrong, or may have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .lines import Facts, Look, Step
from .reading import Run

_ENOUGH = 5  # logged steps, before a value that never changes is conspicuous

_WAS = {"nan": "NaN", "inf": "infinite", "-inf": "minus infinity"}


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        kind: ``"problem"`` or ``"note"``.
        text: what it is, and what may be done.
    """

    kind: str
    text: str


def findings(run: Run) -> list[Finding]:
    """What is conspicuous, the worst first."""
    problems = [*_nonfinite(run), *_checks(run.facts), *_still(run)]
    notes = [*_weights(run), *_readings(run), *run.notes, *_state(run)]
    return [Finding("problem", text) for text in problems] + [Finding("note", x) for x in notes]


def _nonfinite(run: Run) -> Iterator[str]:
    seen: dict[str, list[tuple[int, str]]] = {}
    lines: list[Step | Look] = [*(row.line for row in run.rows), *(one.line for one in run.looks)]
    for line in lines:
        for name, was in line.nonfinite.items():
            seen.setdefault(name, []).append((line.step, was))
    for name, found in seen.items():
        kinds = " and ".join(sorted({_WAS.get(was, was) for _, was in found}))
        plural = "step" if len(found) == 1 else "steps"
        yield (
            f"{_plain(name)} was {kinds} at {len(found)} logged {plural}, "
            f"first at step {found[0][0]}"
            + ("" if len(found) == 1 else f", last at step {found[-1][0]}")
        )


def _plain(name: str) -> str:
    group, _, rest = name.partition("/")
    kinds = {
        "weights": "the weight of ",
        "own": "the reading of ",
        "wrong": "the reading with signals of others of ",
    }
    if group in ("parts", "values"):
        return rest
    return kinds[group] + rest if group in kinds else name


def _checks(facts: Facts) -> Iterator[str]:
    for one in facts.compared:
        yield from (f"before training, {one.term}: {problem}" for problem in one.problems)
    yield from (f"before training: {problem}" for problem in facts.problems)


def _still(run: Run) -> Iterator[str]:
    """Parts that never change although they have a weight."""
    lines = [row.line for row in run.rows]
    for name in _names(lines):
        values = [line.parts[name] for line in lines if line.parts.get(name) is not None]
        weighed = any(line.weights.get(name) for line in lines)
        if len(values) >= _ENOUGH and len(set(values)) == 1 and weighed:
            yield (
                f"{name} never changed: {values[0]:g} at all {len(values)} logged steps. Nothing "
                "is learned from it, or it compares nothing: print(distiller.check(batch))"
            )


def _names(lines: Sequence[Step]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in (*line.parts, *line.weights)))


def _weights(run: Run) -> Iterator[str]:
    lines = [row.line for row in run.rows if row.line.parts or row.line.weights]
    if not lines:
        return
    terms = [term.name for term in run.facts.terms]
    for name in dict.fromkeys([*terms, *_names(lines)]):
        at = [line.step for line in lines if line.weights.get(name)]
        lost = any(f"weights/{name}" in line.nonfinite for line in lines)
        if not at and not lost:
            yield f"{name} had the weight 0 at every logged step: it was not computed"
        elif at and at[-1] < lines[-1].step:
            yield f"{name} has had the weight 0 after step {at[-1]}: it is not computed any more"


def _readings(run: Run) -> Iterator[str]:
    if not run.looks:
        return
    last = run.looks[-1].line
    if last.own and not last.wrong:
        yield (
            "there is no reading with the signals of others: no watched example has a partner "
            "whose texts are as long"
        )
    for name, own in last.own.items():
        wrong = last.wrong.get(name)
        if own is not None and wrong is not None and own >= wrong:
            yield (
                f"{name} at step {last.step} is {own:g} with the examples' own teacher signals and "
                f"{wrong:g} with those of others: nothing of the single example is learned yet"
            )


def _state(run: Run) -> Iterator[str]:
    if len(run.begins) > 1:
        yield f"{len(run.begins)} programs wrote it one after the other; times leave out pauses"
    if run.ended is None:
        yield "the log was not closed: the training goes on, or was interrupted"
