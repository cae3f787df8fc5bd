"""What both sides of a term are, where they differ, and which aligner would fix it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._attention import Attention
from .._backbone.signals import Axes, Signals
from .._backbone.tokens import TokenAxis
from .._plugins.registry import provided
from .._plugins.specs import LossSpec
from ..errors import DistillKitError, ShapeError
from ..losses import shared_rows
from .term import Objective, Term

_EXTENTS = (
    "align = [\"overlap\"] carries the teacher's attention onto the student's tokens by where both "
    "lie in the raw input"
)
_SAME_WIDTH = {"(d),(d)": "projector", "(v),(v)": "universal_logit_distance"}


@dataclass(frozen=True)
class TermCheck:
    """What a dry run saw of one term.

    Attributes:
        term: its name.
        student: the student's side: shape of the layer that is compared, and what counts.
        teacher: the teacher's.
        align: the term's aligners.
        value: the unweighted value; None where it could not be computed.
        problems: what differs or is missing, each with its fix.
    """

    term: str
    student: str = ""
    teacher: str = ""
    align: str = ""
    value: float | None = None
    problems: tuple[str, ...] = ()


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

    def __str__(self) -> str:
        rows = [("term", "student", "teacher", "align", "value")]
        for one in self.terms:
            value = "-" if one.value is None else f"{one.value:.4f}"
            rows.append((one.term, one.student, one.teacher, one.align, value))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        problems = [f"! {p}" for one in self.terms for p in one.problems]
        problems += [f"! {p}" for p in self.problems]
        return "\n".join([*lines, *self.signals, *(problems or ["ready to train"])])


def check_term(
    term: Term, student: Signals, teacher: Signals, batch: Mapping[str, Any] | None
) -> TermCheck:
    """A dry run of one term: shapes, what counts, what differs, its value."""
    align = ", ".join(term.aligner_names) or "-"
    try:
        pairs = compared_layers(term, student, teacher)
    except DistillKitError as error:
        return TermCheck(term.name, align=align, problems=(str(error),))
    ours, theirs = pairs[0][0][0], pairs[0][1][0]
    seen = TermCheck(term.name, _described(ours), _described(theirs), align)
    found = differences(term, student, teacher)
    try:
        term.check_gradient([term.signal("student", student, name) for name in term.on])
    except DistillKitError as error:
        found.append(str(error))
    try:
        value = term(student, teacher, batch).item()
    except (DistillKitError, RuntimeError) as error:
        found = found or [str(error)]
        return TermCheck(term.name, seen.student, seen.teacher, align, None, tuple(found))
    return TermCheck(term.name, seen.student, seen.teacher, align, value, tuple(found))


def check_first_batch(
    objective: Objective, active: Mapping[str, float], student: Signals, teacher: Signals
) -> None:
    """Compare the structure of both sides before the first step.

    Raises:
        ShapeError: every difference of every active term, each with the aligner that fixes it.
    """
    found = [
        f"term {term.name!r}: {problem}"
        for term in objective.each()
        if term.name in active and not term.is_task
        for problem in differences(term, student, teacher)
    ]
    if found:
        raise ShapeError("\n".join(found))


def compared_layers(
    term: Term, student: Signals, teacher: Signals
) -> list[tuple[list[Any], list[Any]]]:
    """The pairs of layers that a term compares, before its aligners."""
    ours = [term.signal("student", student, name) for name in term.on]
    theirs = [term.signal("teacher", teacher, name) for name in term.on]
    return term.layer_pairs(ours, theirs)


def differences(term: Term, student: Signals, teacher: Signals) -> list[str]:
    """What differs between both sides after the term's aligners, each with its fix."""
    found: list[str] = []
    for students, teachers in compared_layers(term, student, teacher):
        for name, ours, theirs in zip(term.on, students, teachers, strict=True):
            axes = student.axes(name), teacher.axes(name)
            try:
                aligned = term.aligned(ours, theirs, axes)
            except ShapeError as error:
                found.append(str(error).removeprefix(f"term {term.name!r}: "))
                continue
            if isinstance(ours, Attention) and isinstance(theirs, Attention):
                same = aligned[0] is ours and aligned[1] is theirs
                found += _attention_differences(term, name, aligned, axes if same else ((), ()))
            elif isinstance(ours, Tensor) and isinstance(theirs, Tensor):
                found += _tensor_differences(term, name, aligned)
    return list(dict.fromkeys(found))


def _attention_differences(
    term: Term, name: str, sides: tuple[Attention, Attention], axes: tuple[Axes, Axes]
) -> list[str]:
    ours, theirs = (side.shape for side in sides)
    shapes = f"student {ours}, teacher {theirs}, each (b, h, q, k)"
    if ours[0] != theirs[0]:
        return [f"{name} is of {ours[0]} examples and {theirs[0]}: {shapes}"]
    found = []
    for axis, what in ((2, "queries"), (3, "keys")):
        known = [side[axis - 2] if len(side) == 2 else None for side in axes]
        if ours[axis] != theirs[axis]:
            found.append(f"{name} has unequal {what}: {shapes}. {_EXTENTS}")
        else:
            found += _token_differences(name, what, *known)
    if ours[1] != theirs[1] and not _averages_heads(term):
        found.append(
            f'{name} has unequal heads: {shapes}. The option heads="mean" compares the average '
            "over each side's heads"
        )
    if not found and not bool(shared_rows(*sides).any()):
        found.append(
            f"{name}: no row of this batch counts, so nothing would be learned from it: the "
            "teacher has no key left for any row that both sides keep (a causal decoder's image "
            "never sees its text; an image that shows nothing of what the other side sees)"
        )
    return found


def _averages_heads(term: Term) -> bool:
    return bool(term.options.get("heads") or term.options.get("relation_heads"))


def _token_differences(
    name: str, what: str, ours: TokenAxis | None, theirs: TokenAxis | None
) -> list[str]:
    """Equally many tokens that are nevertheless others."""
    if ours is None or theirs is None:
        return []
    if ours.extents is not None and theirs.extents is not None:
        if _close(ours.extents, theirs.extents):
            return []
        return [f"{name}: the {what} lie elsewhere in the raw input on each side. {_EXTENTS}"]
    if ours.grid and theirs.grid and ours.grid != theirs.grid:
        grids = f"{ours.grid} and {theirs.grid}"
        return [f"{name}: the {what} are patches of different grids, {grids}. {_EXTENTS}"]
    if ours.special and theirs.special and ours.special != theirs.special:
        places = f"{ours.special} and {theirs.special}"
        return [f"{name}: the {what} have their special tokens at {places}. {_EXTENTS}"]
    if bool(ours.special) != bool(theirs.special) and ours.grid and theirs.grid:
        return [f"{name}: only one side's {what} have a special token. {_EXTENTS}"]
    for of, one, other in (("text", ours.ids, theirs.ids), ("padding", ours.valid, theirs.valid)):
        if one is not None and other is not None and one is not other and not _equal(one, other):
            why = f"{of} on each side (another tokenizer, or another padding side)"
            return [f"{name}: the {what} differ in {why}. {_EXTENTS}"]
    return []


def _tensor_differences(term: Term, name: str, sides: tuple[Tensor, Tensor]) -> list[str]:
    ours, theirs = sides
    shapes = f"student {tuple(ours.shape)}, teacher {tuple(theirs.shape)}"
    if ours.shape[:1] != theirs.shape[:1]:
        return [f"{name} is of different numbers of examples: {shapes}"]
    signature = _signature(term)
    consumed = signature.partition("->")[0]
    if ours.shape[1:-1] != theirs.shape[1:-1] and consumed in _SAME_WIDTH:
        return [f"{name} has unequal tokens: {shapes}; no aligner carries hidden states"]
    if ours.shape[-1:] == theirs.shape[-1:] or consumed not in _SAME_WIDTH:
        return []
    if consumed == "(d),(d)":
        widths = f"student_width = {ours.shape[-1]}, teacher_width = {theirs.shape[-1]}"
        fix = f'align = [{{ name = "projector", {widths} }}] learns a map between the widths'
    else:
        shapes += f": one side has {ours.shape[-1]} and the other {theirs.shape[-1]}"
        fix = (
            'align = ["truncate"] or ["mask"] keeps what both have, where one vocabulary extends '
            'the other; loss = "universal_logit_distance" compares unrelated ones'
        )
    return [f"{name} has unequal {'widths' if 'd' in consumed else 'classes'}: {shapes}. {fix}"]


def _signature(term: Term) -> str:
    specs = provided(LossSpec).get(term.loss_name, {})
    return next(iter(specs.values())).signature if specs else ""


def _described(side: Any) -> str:
    if isinstance(side, Attention):
        shape = ", ".join(f"{k}={n}" for k, n in zip("bhqk", side.shape, strict=True))
        rows = side.valid_rows()[:, 0]
        return f"({shape}), {int(rows.sum())} of {rows.numel()} rows"
    return str(tuple(side.shape))


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape[1:] != other.shape[1:]:
        return False
    other = other.to(one.device)
    return bool(torch.isclose(one.double(), other.double(), atol=1e-4).all())


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other.to(one.device))


def offered(side: str, signals: Signals, used: Sequence[str]) -> str:
    """One line: what a side offers; and what it cannot have."""
    names = ", ".join(f"{name}*" if name in used else name for name in signals)
    absent = "".join(f"; not {name}: {why}" for name, why in signals.absent.items())
    return f"{side} offers {names or 'nothing'}{absent}"
