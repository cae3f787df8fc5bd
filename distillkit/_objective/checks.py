"""What a look at both sides of every term says before any training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._attention import Attention
from .._backbone.signals import Signals
from .._notebook import preformatted
from ..errors import DistillKitError, ShapeError
from .comparison import Comparison
from .differences import differences, has_pairs
from .ensemble import TeacherSignals
from .gathering import alone
from .objective import Objective, autocast_off
from .term import Term


@dataclass(frozen=True)
class TermCheck:
    """The findings of a dry run about one term.

    Attributes:
        term: its name.
        student: the student's side: shape of the layer that is compared, and what counts.
        teacher: the teacher's.
        align: the term's aligners.
        counts: how much of what is compared counts, after padding, ``mask`` and ``where``.
        value: the unweighted value; None where it could not be computed.
        problems: what differs or is missing, each with its fix.
        layers: the layers of both sides that are compared, where the term chooses some.
    """

    term: str
    student: str = ""
    teacher: str = ""
    align: str = ""
    counts: str = "-"
    value: float | None = None
    problems: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """The table of :meth:`Distiller.check`.

    Attributes:
        terms: one entry for each term.
        problems: what is wrong apart from the terms, such as a batch entry that nothing uses.
        signals: what each side offers and what it cannot have.
    """

    terms: tuple[TermCheck, ...]
    problems: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether training on such batches would start."""
        return not self.problems and not any(one.problems for one in self.terms)

    _repr_html_ = preformatted  # in a notebook

    def __str__(self) -> str:
        rows = [("term", "student", "teacher", "align", "counts", "value")]
        for one in self.terms:
            value = "-" if one.value is None else f"{one.value:.4f}"
            rows.append((one.term, one.student, one.teacher, one.align, one.counts, value))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += [f"{one.term}: layer {'; '.join(one.layers)}" for one in self.terms if one.layers]
        problems = [f"! {p}" for one in self.terms for p in one.problems]
        problems += [f"! {p}" for p in self.problems]
        return "\n".join([*lines, *self.signals, *(problems or ["ready to train"])])


def check_term(
    term: Term, student: Signals, teacher: TeacherSignals, batch: Mapping[str, Any] | None
) -> TermCheck:
    """A dry run of one term: shapes, what counts, what differs, its value."""
    align = ", ".join(term.aligners.names) or "-"
    try:
        comparison = term.compare(student, teacher, batch)
        sides = comparison.pairs[0]
        seen = TermCheck(
            term.name, _describe(sides.students[0]), _describe(sides.teachers[0]), align,
            layers=() if term.layers.is_last else tuple(comparison.layer_lines()),
        )  # fmt: skip
    except DistillKitError as error:
        return TermCheck(term.name, align=align, problems=(str(error),))
    found = differences(term, comparison) if has_pairs(comparison) else []
    try:
        comparison.check_gradient()
    except DistillKitError as error:
        found.append(str(error))
    try:
        with autocast_off(), alone():
            value = term(student, teacher, batch, comparison=comparison).item()
    except (DistillKitError, RuntimeError) as error:
        return replace(seen, problems=tuple(found or [str(error)]))
    return replace(seen, counts=counted_line(comparison), value=value, problems=tuple(found))


def check_first_batch(
    objective: Objective,
    active: Collection[str],
    student: Signals,
    teacher: TeacherSignals,
    comparisons: Mapping[str, Comparison] | None = None,
) -> frozenset[str]:
    """Compare the structure of both sides, before the first step and whenever one likes.

    Args:
        objective: the terms.
        active: the names of those that are computed.
        student: the student's signals.
        teacher: the teacher's.
        comparisons: what :meth:`Objective.compare` made of them, to share it with the loss.

    Returns:
        The names of the terms that were compared. Left out are the task, and terms of which this
        batch has no pairs on either side, as a batch of words alone has none of words and patches.

    Raises:
        ShapeError: every difference of every active term, each with the aligner that fixes it.
    """
    compared, found = set(), []
    with autocast_off():
        if comparisons is None:
            comparisons = objective.compare(student, teacher, active)
        for term in objective.each():
            comparison = comparisons.get(term.name)
            if comparison is None or not has_pairs(comparison):
                continue
            compared.add(term.name)
            found += [f"term {term.name!r}: {one}" for one in differences(term, comparison)]
    if found:
        raise ShapeError("\n".join(found))
    return frozenset(compared)


def counted_lines(comparisons: Mapping[str, Comparison]) -> list[str]:
    """One line for each term: how much of it counted, once its value has been computed.

    It looks at the masks: on an accelerator, the host waits.
    """
    return [f"{term}: {counted_line(one)}" for term, one in comparisons.items() if one.counted]


def counted_line(comparison: Comparison) -> str:
    """How many rows, positions or examples of the first pair of layers count: "17 of 21 rows"."""
    kept, shape = comparison.counted[0].kept, comparison.counted[0].shape
    signal = comparison.pairs[0].students[0]
    what = "examples" if len(shape) < 2 else "positions"
    if isinstance(signal, Attention):
        what, shape = "rows", shape[::2]
        kept = None if kept is None else kept.any(1)
    count = shape.numel() if kept is None else int(kept.sum())
    return f"{count} of {shape.numel()} {what}"


def _describe(side: Any) -> str:
    if isinstance(side, Attention):
        shape = ", ".join(f"{k}={n}" for k, n in zip("bhqk", side.shape, strict=True))
        rows = side.valid_rows()[:, 0]
        return f"({shape}), {int(rows.sum())} of {rows.numel()} rows"
    return str(tuple(side.shape))


def list_offers(
    terms: Sequence[Term], student: Signals, teacher: TeacherSignals
) -> tuple[str, ...]:
    """One line for the student and one for each teacher: what it offers, and what is compared."""
    lines = [list_offer("student", student, [one.student for term in terms for one in term.on])]
    if isinstance(teacher, Signals):
        used = [one.teacher for term in terms for one in term.on]
        return (*lines, list_offer("teacher", teacher, used))
    for name, signals in teacher.items():
        of_it = [t for t in terms if not t.is_task and name in t.teachers.names([*teacher])]
        used = [one.teacher for term in of_it for one in term.on]
        lines.append(list_offer(f"teacher {name!r}", signals, used))
    return tuple(lines)


def list_offer(side: str, signals: Signals, used: Sequence[str]) -> str:
    """One line: what a side offers; and what it cannot have."""
    names = ", ".join(f"{name}*" if name in used else name for name in signals)
    absent = "".join(f"; not {name}: {why}" for name, why in signals.absent.items())
    return f"{side} offers {names or 'nothing'}{absent}"
