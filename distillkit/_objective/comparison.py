"""Both sides of a term in one step: looked up, paired layer by layer and aligned, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from .._attention import Attention, widen
from .._backbone.head import PARAMETERS
from .._backbone.signals import Signals, TokenAxes
from .._transfer import trackable
from ..errors import RecipeError, ShapeError, SignalError, unknown_name
from .align.making import AxesOfSides
from .compared import Compared
from .layer_choice import LayerRule, show_positions
from .layer_mean import mean_of_layers

Sides: TypeAlias = "tuple[list[Any], list[Any]]"

_SINGLE = Tensor, Attention
"""What has no layers."""


class Align(Protocol):
    """What makes one signal of both sides comparable: a term's aligners, one after another."""

    def aligned(self, student: Any, teacher: Any, axes: AxesOfSides) -> tuple[Any, Any]:
        """One layer of both sides."""

    def aligned_axes(self, axes: AxesOfSides) -> AxesOfSides:
        """The known facts about the tokens of what :meth:`aligned` returns."""


class LayerPair(NamedTuple):
    """One layer of every signal that a term compares, before its aligners.

    Attributes:
        students: the student's signals at that layer, in the order of ``on``.
        teachers: the teacher's.
        place: the student's layer and how many it has; None for signals without layers.
        taught_by: the teacher's layer, or those of which this is the mean, and how many it has.
    """

    students: list[Any]
    teachers: list[Any]
    place: tuple[int, int] | None = None
    taught_by: tuple[tuple[int, ...], int] | None = None


class Counted(NamedTuple):
    """How much of one layer's values went into a term's mean.

    Attributes:
        amount: what the sum is divided by where no normalizer is given, detached.
        kept: which values count, of the values' shape; None: all do.
        shape: the shape of the loss's values.
    """

    amount: Tensor
    kept: Tensor | None
    shape: torch.Size


class Comparison:
    """Both sides of a term in one step.

    It is made once per step. The first look at a batch, ``check`` and the term's value share it,
    so that nothing is looked up, replayed or aligned twice.

    Args:
        term: what errors call the term.
        on: the signals that it compares.
        layers: which of their layers, as :class:`Term` says.
        align: makes one signal of both sides comparable; None: they are as they are.
        student: the student's signals.
        teacher: the teacher's.

    Attributes:
        pairs: the layers that are compared.
        choices: the indices of the pairs of each of the student's layers: of several, which have
            one layer of the teacher's each, an example keeps the best.
        counted: one entry for each choice, once the term's value has been computed.

    Raises:
        SignalError: a signal that one side does not have.
        RecipeError: layers that are not there.
    """

    __slots__ = (
        "_align", "_aligned", "_axes", "_sides", "choices", "counted", "on", "pairs", "term",
    )  # fmt: skip

    def __init__(
        self,
        term: str,
        on: Sequence[Compared],
        layers: LayerRule,
        align: Align | None,
        student: Signals,
        teacher: Signals,
    ) -> None:
        self.term, self.on, self._align = term, on, align
        self._sides = student, teacher
        students = [_signal(term, "student", student, one.student) for one in on]
        teachers = [_signal(term, "teacher", teacher, one.teacher) for one in on]
        choices = _layer_pairs(term, layers, students, teachers)
        self.pairs = [pair for choice in choices for pair in choice]
        ends = list(accumulate(map(len, choices), initial=0))
        self.choices = [range(*both) for both in pairwise(ends)]
        self.counted: list[Counted] = []
        self._aligned: dict[int, Sides] = {}
        self._axes: dict[int, AxesOfSides] = {}

    @property
    def teacher(self) -> Signals:
        """The teacher's signals: of several teachers, those that the term learns from."""
        return self._sides[1]

    def axes(self, index: int) -> AxesOfSides:
        """The known facts about the tokens of one signal, on both sides, before any aligner."""
        student, teacher = zip(self._sides, self.on[index], strict=True)
        return _known_axes(*student), _known_axes(*teacher)

    def aligned_axes(self, index: int) -> AxesOfSides:
        """The same after the term's aligners, as far as they say what they do to tokens."""
        if index not in self._axes:
            axes = self.axes(index)
            self._axes[index] = axes if self._align is None else self._align.aligned_axes(axes)
        return self._axes[index]

    def masks(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """The positions of one aligned signal that are real, on both sides; None: all."""
        # an attention has its padding in its rows: its token axes, which cost time, tell nothing
        has_axes = not isinstance(self.pairs[0].students[index], Attention)
        student, teacher = (
            signals.mask(name, of_axes=has_axes)
            for signals, name in zip(self._sides, self.on[index], strict=True)
        )
        if not has_axes:
            return student, teacher
        before, after = self.axes(index), self.aligned_axes(index)
        return _known_mask(student, before[0], after[0]), _known_mask(teacher, before[1], after[1])

    def aligned(self, index: int, *, keep: bool = True) -> Sides:
        """One pair of layers after the term's aligners, in float32 at least.

        Args:
            index: which of the pairs.
            keep: whether to remember it for whoever asks next; the last one does not.

        Raises:
            ShapeError: what an aligner says; unequal numbers of examples.
        """
        found = self._aligned.pop(index, None) or self._made(self.pairs[index])
        if keep:
            self._aligned[index] = found
        return found

    def _made(self, pair: LayerPair) -> Sides:
        students, teachers = [], []
        for i, name in enumerate(self.on):
            one, other = widened(pair.students[i]), widened(pair.teachers[i])
            if self._align is not None:
                one, other = self._align.aligned(one, other, self.axes(i))
            if name.student in PARAMETERS:
                students.append(one)
                teachers.append(other)
                continue
            if one.shape[:1] != other.shape[:1]:  # a loss of one's own might broadcast them
                raise ShapeError(
                    f"term {self.term!r}: {name} is of different numbers of examples: student "
                    f"{tuple(one.shape)}, teacher {tuple(other.shape)}"
                )
            students.append(one)
            teachers.append(other)
        return students, teachers

    def layout_mask(self) -> Tensor | None:
        """The positions that both sides' layouts call real; None: all are.

        Raises:
            ShapeError: masks of different shapes.
        """
        kept: Tensor | None = None
        for i, name in enumerate(self.on):
            for mask in self.masks(i):
                if mask is None:
                    continue
                if kept is not None and kept.shape != mask.shape:
                    raise ShapeError(
                        f"term {self.term!r}: the masks of {name} do not fit: one is "
                        f"{tuple(kept.shape)}, another {tuple(mask.shape)}; student and teacher "
                        "must see the same examples and tokens"
                    )
                kept = trackable(mask) if kept is None else kept & mask
        return kept

    def check_gradient(self) -> None:
        """Refuse layers of the student that can teach it nothing.

        Raises:
            SignalError: a signal, and its layer, without gradient.
        """
        for pair in self.pairs:
            # a head and what goes into it learn together: either may be frozen
            head = [
                layer.requires_grad
                for one, layer in zip(self.on, pair.students, strict=True)
                if one.student.startswith("head.")
            ]
            for one, layer in zip(self.on, pair.students, strict=True):
                learns = any(head) if one.student.startswith("head.") else layer.requires_grad
                if not learns:
                    raise SignalError(_no_gradient(self.term, one.student, pair.place))

    def head_arguments(self) -> dict[str, Tensor | float]:
        """The arguments of a loss of ``head.weight`` for what else is known of both heads.

        A bias, and the soft cap that a model's logits end in, as ``student_bias`` and the like.
        """
        found: dict[str, Tensor | float] = {}
        for side, signals in zip(("student", "teacher"), self._sides, strict=True):
            if "head.bias" in signals:
                found[f"{side}_bias"] = signals["head.bias"]  # type: ignore[assignment]
            if "head.softcap" in signals:
                found[f"{side}_softcap"] = float(signals["head.softcap"])  # type: ignore[arg-type]
        return found

    def layer_lines(self) -> list[str]:
        """The layers of both sides, a line for each of the student's: ``1 of 4 with 3-5 of 12``."""
        lines = []
        for choice in self.choices:
            pair = self.pairs[choice[0]]
            if pair.place is None or pair.taught_by is None:
                continue
            candidates = [self.pairs[i].taught_by for i in choice]
            teachers = [one[0] for one in candidates if one is not None]
            of = "the best of " if len(choice) > 1 else "the mean of " * (len(teachers[0]) > 1)
            shown = show_positions(layer for one in teachers for layer in one)
            lines.append(
                f"{pair.place[0]} of {pair.place[1]} with {of}{shown} of {pair.taught_by[1]}"
            )
        return lines

    @property
    def counts(self) -> Tensor:
        """How much counted: one number, or one for each of several layers of the student."""
        found = [one.amount for one in self.counted]
        return found[0] if len(found) == 1 else torch.stack(found)


def widened(signal: Any) -> Any:
    """At least float32; an attention sees to it when it computes its scores."""
    return signal if isinstance(signal, Attention) else widen(signal)


def _signal(term: str, side: str, signals: Signals, name: str) -> Any:
    """One side's signal, or an error that says why there is none."""
    if name in signals:
        return signals[name]
    if name in signals.absent:
        raise SignalError(f"term {term!r} needs {name!r} of the {side}: {signals.absent[name]}")
    message = unknown_name(f"signal of the {side}", name, signals)
    raise SignalError(f"term {term!r}: {message}; its adapter offers no other")


def _known_axes(signals: Signals, name: str) -> TokenAxes:
    """The axes of a signal; of a tensor, the padding is what its mask says."""
    axes, mask = signals.axes(name), signals.mask(name)
    if len(axes) != 1 or axes[0] is None or mask is None or axes[0].valid is mask:
        return axes
    return (replace(axes[0], valid=mask),)


def _known_mask(mask: Tensor | None, before: TokenAxes, after: TokenAxes) -> Tensor | None:
    """What a tensor signal's token axis says, which aligners keep up to date; else its mask.

    Of a tensor that was computed late, the axis alone knows it. An aligner that leaves no token
    axis, such as a mean over tokens, leaves no padding.
    """
    if after and after[0] is not None:
        return after[0].valid
    return mask if len(before) == len(after) else None


def _layer_pairs(
    term: str, rule: LayerRule, students: list[Any], teachers: list[Any]
) -> list[list[LayerPair]]:
    """For each chosen layer of the student, what it is compared with: one pair, or candidates."""
    if not [one for one in (*students, *teachers) if not isinstance(one, _SINGLE)]:
        if not rule.is_last:
            raise RecipeError(
                f"term {term!r}: layers = {rule.given!r} has no meaning for a signal without layers"
            )
        return [[LayerPair(students, teachers)]]
    if rule.has_fractions:
        _check_one_depth(term, rule, students, teachers)
    student, teacher = _depth(students), _depth(teachers)
    found = []
    for layer, others in rule.matched(term, student, teacher):
        own = _layer_of(students, layer)
        groups = [(one,) for one in others] if rule.match == "best" else [others]
        found.append(
            [
                LayerPair(
                    own,
                    _mean(term, [_layer_of(teachers, i) for i in group]),
                    (layer % student, student),
                    (tuple(i % teacher for i in group), teacher),
                )
                for group in groups
            ]
        )
    return found


def _mean(term: str, layers: list[list[Any]]) -> list[Any]:
    """The mean over layers of each of a side's signals; one without layers is itself."""
    if len(layers) == 1:
        return layers[0]
    return [
        of_signal[0] if all(one is of_signal[0] for one in of_signal)
        else mean_of_layers(term, of_signal)
        for of_signal in zip(*layers, strict=True)
    ]  # fmt: skip


def _check_one_depth(term: str, rule: LayerRule, *sides: list[Any]) -> None:
    """Refuse relative depths of several signals of one side that have other numbers of layers."""
    for side in sides:
        depths = {len(one) for one in side if not isinstance(one, _SINGLE)}
        if len(depths) > 1:
            raise RecipeError(
                f"term {term!r}: layers = {rule.given!r} speaks of relative depths, and the "
                f"signals of one side have {sorted(depths)} layers: name indices, [[0, 1], ...]"
            )


def _depth(signals: Sequence[Any]) -> int:
    """The number of layers of one side; one, where none of its signals has layers."""
    return min([len(one) for one in signals if not isinstance(one, _SINGLE)], default=1)


def _layer_of(signals: Sequence[Any], index: int) -> list[Any]:
    """One layer of every signal; a signal without layers belongs to every layer."""
    return [one if isinstance(one, _SINGLE) else one[index] for one in signals]


def _no_gradient(term: str, name: str, place: tuple[int, int] | None) -> str:
    where = "" if place is None else f", layer {place[0]} of {place[1]},"
    return (
        f"term {term!r}: the student's signal {name!r}{where} carries no gradient, so nothing "
        "would be learned from it: the student ran under no_grad, detached it, has every parameter "
        "below it frozen, or was checkpointed with use_reentrant=True (use_reentrant=False keeps "
        "the gradient)"
    )
