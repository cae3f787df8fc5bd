"""One weighted loss on one signal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._attention import Attention
from .._backbone.head import PARAMETERS
from .._backbone.signals import Signals
from ..errors import RecipeError, ShapeError, SignalError, unknown_name
from .align.chain import Aligners
from .align.making import asked_tokens, told_tokens
from .averaging import Per, averaged
from .compared import Compared, On, compared_signals, label_of
from .comparison import Comparison, Counted, widened
from .counting import Counting, TermInputs, entry_mask, says_labels
from .ensemble import TeacherChoice, TeacherSignals, given_names, label_of_teachers
from .gathering import Gathering, check_gather, check_gatherable, ranks
from .head_arguments import free_head_arguments
from .layer_best import best_of
from .layer_choice import LayerChoice, layer_rule
from .learned import check_reached, current, learned_options
from .normalizer import Number, check_nothing_counts, check_number, divisor, of_layer
from .options import (
    accepted_by,
    checked_choice,
    checked_options,
    checked_weight,
    loss_of,
    refuse_on_task,
    takes_valid,
    temperature_of,
)
from .schedule import Schedule
from .token_weights import TokenWeights

Rows = Literal["valid", "all"]

TASK = "task"


class Term(nn.Module):
    """One weighted loss on one signal.

    Args:
        loss: a registered name, a function ``(student, teacher, *, ...)``, or ``"task"``: the
            student's own loss.
        on: a signal, ``{"student": ..., "teacher": ...}`` where the sides have it under different
            names, or a list of these: all of the student's come first, then the teacher's.
        layers: of signals with layers, one of

            - ``"last"``, ``"first"``; ``"all"``, layer i with layer i of equal depths;
            - ``"uniform"``, every layer of the student with an evenly spaced one of the teacher;
              ``"middle"``, the middle 30-70 % of each side as
              ``{"from": 0.3, "to": 0.7, "match": "mean"}``;
            - pairs ``[student, teacher]`` of indices from either end, or of fractions: f of n
              layers is layer ``f * (n - 1)``, rounded, halves up. 1 is the second layer and 1.0
              the last, so that no choice mixes them. A pair may have a group of the teacher's
              layers, ``[0, [0, 1, 2]]``;
            - a table with ``from`` and ``to``, fractions that both belong to it, or with ``pairs``;
              and ``match``. Between ``from`` and ``to`` the teacher's t layers are cut into runs
              for the student's s: run k is ``k * t // s`` to ``(k + 1) * t // s`` without its end,
              or ``k * t // s`` alone where that is empty.

            ``match`` compares a layer with its group's ``"mean"``, the default, of hidden states or
            of probabilities, which keeps heads and leaves out rows that one of them leaves out;
            with the ``"best"`` for each example, which has the smallest mean of the loss's values
            that count (ties: the lower layer); or, of runs, with the last layer alone,
            ``"uniform"``. The value is the mean over the student's layers.
        rows: ``"valid"`` leaves padding out; ``"all"`` averages over padded positions too, as the
            DiDE paper does.
        per: ``"example"``: the mean over examples of each example's mean, so that splitting a
            batch changes nothing; ``"row"``: the mean over all positions.
        mask: the batch entry that says which positions count, on top of ``rows``: boolean, True
            counts; or labels as signed integers, of which -100 does not count. ``(b, n)`` for
            logits and hidden states ``(b, n, d)``, ``(b, q)`` for attention, ``(b,)`` where an
            example is one position; where the term is on some tokens of a sequence, it may also be
            as long as the sequence.
        align: aligners, by name or ``{"name": ..., **options}``, applied in this order.
        weight: a number >= 0, or a :class:`Schedule` or its keys.
        gather: for a loss that compares examples with each other, of signals ``(b, d)``: compute it
            on the examples of all processes, with gradient, and the ``mask`` and ``inputs`` that
            have an entry for each. Loss and gradients, averaged over processes as DDP does, are
            those of one process with the whole batch; ``counts`` are each process's equal share.
            Every process calls the term equally often, also in evaluation.
        inputs: tensor argument of the loss -> batch entry. Where a bound ``where`` keeps no class
            of a position, it does not count.
        options: the loss's other keyword-only parameters.
        learn: options that are trained: option -> the positive number that it starts at, or
            ``{"start": ..., "low": ..., "high": ..., "reverse": ...}``: it stays between ``low``
            and ``high``; ``reverse`` turns its gradient round.
        token_weights: a signal of the teacher by which the positions of an example are weighted,
            or ``{"signal": ..., "layer": ..., "query": ..., "softmax": ...}``: an attention's mass
            on each key, of one query or of all; or any ``(b, n)``.
        name: what ``parts`` calls it; ``"<loss>/<on>"`` by default, with ``~`` between the names
            of a signal that the sides call differently, and ``@<teacher>`` where one is named.
        teacher: of several teachers, the name of the one that is imitated, a list of names, or
            ``"all"``; a single unnamed teacher is not named.
        ensemble: how several teachers become one: ``"probabilities"`` (the default), ``"logits"``,
            ``"confidence"``, ``"confidence:<entry of the labels>"``, or teacher -> weight.

    A loss with the keyword-only parameters ``student_tokens`` and ``teacher_tokens`` is told what
    is known of the tokens of its first signal, as an aligner is: a ``TokenAxis`` or None for each
    token axis, after the term's aligners. One with the keyword-only tensor ``valid`` consumes the
    tokens of hidden states, and is told which of them count, boolean ``(b, n)``: those that are no
    padding and that ``mask`` keeps; None: all.

    Attributes:
        entries: the batch entries that the term reads.
        on: the signals that it compares, each with its name on either side.

    Raises:
        UnknownNameError: no such loss, aligner, option or input.
        RecipeError: a combination that means nothing.

    Examples:
        >>> Term("kl_divergence", on="logits", options={"temperature": 2.0}).name
        'kl_divergence/logits'
    """

    def __init__(  # noqa: PLR0913 (the keys of a recipe's term, all but one by keyword)
        self,
        loss: str | Callable[..., Tensor],
        *,
        on: On = (),
        layers: LayerChoice = "last",
        rows: Rows = "valid",
        per: Per = "example",
        mask: str | None = None,
        align: Sequence[str | Mapping[str, Any]] = (),
        weight: float | Schedule | Mapping[str, Any] = 1.0,
        inputs: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        gather: bool = False,
        learn: Mapping[str, Any] | None = None,
        token_weights: str | Mapping[str, Any] | TokenWeights | None = None,
        name: str | None = None,
        teacher: str | Sequence[str] | None = None,
        ensemble: str | Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.loss_name = loss if isinstance(loss, str) else getattr(loss, "__name__", "loss")
        self.on = compared_signals(on)
        self.layers = layer_rule(layers)
        self.rows = checked_choice("rows", rows, ("valid", "all"))
        self.per = checked_choice("per", per, ("example", "row"))
        self.weight = checked_weight(weight)
        self.inputs, self.mask = dict(inputs or {}), mask
        self.name = name or default_name(self.loss_name, self.on, teacher, ensemble)
        self.is_task = loss == TASK
        self.signature = ""
        self._function: Callable[..., Tensor] | None = None
        if self.is_task:
            refuse_on_task(self.on, self.inputs, options, align, mask, gather, teacher, ensemble,
                           learn, token_weights)  # fmt: skip
        else:
            self._function, self.signature = loss_of(loss)
            if not self.on:
                raise RecipeError(f"term {self.name!r} needs `on`: the signal that it compares")
        given = dict(options or {})
        self.learned = learned_options(self.name, self._function, learn or {}, given, self.inputs)
        starts = {name: one().item() for name, one in self.learned.items()}
        checked = checked_options(self.name, self._function, {**given, **starts}, self.inputs)
        self.options = {name: value for name, value in checked.items() if name not in starts}
        self._reached = not self.learned
        self.token_weights: TokenWeights | None = TokenWeights.of(self.name, token_weights)
        compared = [one.teacher for one in self.on]
        if self.token_weights is not None:
            compared.append(self.token_weights.signal)
        bound = {*self.inputs, *self.learned}
        heat = None if "temperature" in bound else temperature_of(self._function, self.options)
        self.teachers = TeacherChoice(self.name, teacher, ensemble, compared, heat)
        labels = self.teachers.ensemble.labels
        self.entries = frozenset(filter(None, [*self.inputs.values(), mask, labels]))
        self.aligners = Aligners(self.name, align)
        self._asked_by_loss = asked_tokens(self._function) if self._function is not None else ()
        self.gather = gather
        if gather:
            weighs = self.token_weights is not None
            check_gather(
                self.name, self.loss_name, self.signature, self._asked_by_loss, weighs=weighs
            )
        self._told_valid = takes_valid(self._function)
        self._counting = Counting(self.name, self.signature, mask, told=self._told_valid)
        self._holds_labels = mask is not None and says_labels(mask)
        self._on_head = any(name in PARAMETERS for one in self.on for name in one)
        self._accepted = accepted_by(self._function) if self._on_head else frozenset[str]()
        if self._on_head and (self.teachers.is_ensemble or self.gather or len(self.aligners)):
            raise RecipeError(
                f"term {self.name!r}: `head.weight` is a model's own, not of examples: no "
                "`ensemble`, `gather` or `align` is of it. Name one teacher for each term"
            )
        self._normalizer = f"the normalizer of term {self.name!r}"

    def weight_at(self, progress: float | None) -> float:
        """The weight at a progress in [0, 1]; a fixed weight needs none."""
        if not isinstance(self.weight, Schedule):
            return self.weight
        if progress is None:
            if not self.training:
                return self.weight.at(1.0)
            raise RecipeError(
                f"the weight of term {self.name!r} is scheduled: pass the part of training that "
                "is done, distiller(batch, progress=step / steps)"
            )
        return self.weight.at(progress)

    def compare(
        self, student: Signals, teacher: TeacherSignals, batch: Mapping[str, Any] | None = None
    ) -> Comparison:
        """Both sides of this step, for everybody who looks at them.

        Args:
            student: the student's signals.
            teacher: the teacher's, or of several teachers by name.
            batch: where an ensemble that is weighted by labels finds them.

        Raises:
            SignalError: a signal that one side does not have.
            RecipeError: layers that are not there.
        """
        align = self.aligners if len(self.aligners) else None
        one = self.teachers.of(teacher, batch)
        return Comparison(self.name, self.on, self.layers, align, student, one)

    def forward(
        self,
        student: Signals,
        teacher: TeacherSignals,
        batch: Mapping[str, Any] | None = None,
        *,
        normalizer: Number | None = None,
        comparison: Comparison | None = None,
    ) -> Tensor:
        """The unweighted value, a scalar.

        Args:
            student: the student's signals.
            teacher: the teacher's, or of several teachers by name.
            batch: where ``inputs`` and ``mask`` find their entries.
            normalizer: how much counts in the whole batch, of which this is a part: divides the
                sum instead of what counts here. One number, or one for each of the student's
                layers.
            comparison: what :meth:`compare` made of these signals before; its ``counted`` then
                says how much counted.

        Raises:
            ShapeError: sides, masks or arguments that do not fit, with the fix.
            SignalError: an entry that the batch lacks; in training, a layer without gradient.
            OptionError: a normalizer that nobody can have counted.
        """
        if comparison is None:
            comparison = self.compare(student, teacher, batch)
        layers = len(comparison.choices)
        shares = None if normalizer is None else self._shares(normalizer, layers)
        step = self._step(comparison, batch)
        if self.token_weights is not None:
            step = step._replace(
                weights=self.token_weights.of_teacher(self.name, comparison.teacher)
            )
        gathering = None
        if self.gather:
            first = comparison.aligned(0)
            check_gatherable(self.name, self.signature and self.loss_name, first)
            if ranks() > 1:
                gathering = Gathering(first, step)
        if self.training and torch.is_grad_enabled():
            comparison.check_gradient()
        comparison.counted.clear()
        means = [self._layer_value(comparison, i, step, shares, gathering) for i in range(layers)]
        return means[0] if layers == 1 else torch.stack(means).mean()

    def _step(self, comparison: Comparison, batch: Mapping[str, Any] | None) -> TermInputs:
        """The inputs that every layer of this step shares."""
        layout = comparison.layout_mask() if self.rows == "valid" else None
        if not self.entries:
            return TermInputs(layout, None, (), self.inputs)
        arguments = {name: self._entry(batch, name, key) for name, key in self.inputs.items()}
        if self.mask is None:
            return TermInputs(layout, None, (), arguments)
        axes = [side[0] for side in comparison.aligned_axes(0) if side]
        return TermInputs(layout, self._mask_entry(self.mask, batch), axes, arguments)

    def _layer_value(
        self,
        comparison: Comparison,
        index: int,
        step: TermInputs,
        shares: Sequence[Number] | None,
        gathering: Gathering | None,
    ) -> Tensor:
        """The value of one of the student's layers: align, compare, choose, average."""
        found = [
            self._pair_values(comparison, i, step, gathering) for i in comparison.choices[index]
        ]
        values, kept = found[0] if len(found) == 1 else best_of(self.name, found)
        if shares is None:
            mean = averaged(values, kept, self.per)
        else:
            whole = divisor(shares[index])
            # a normalizer is what all count together, divided by their number
            whole = whole if gathering is None else whole * ranks()
            mean = averaged(values, kept, self.per, whole)
            check_nothing_counts(self._normalizer, shares[index], mean.amount)
        amount = mean.amount if gathering is None else mean.amount / ranks()
        comparison.counted.append(Counted(amount, kept, values.shape))
        return mean.value

    def _pair_values(
        self, comparison: Comparison, index: int, step: TermInputs, gathering: Gathering | None
    ) -> tuple[Tensor, Tensor | None]:
        """The loss's values of one pair of layers, and which of them count."""
        assert self._function is not None
        students, teachers = comparison.aligned(index, keep=False)
        if self.rows == "all":
            students, teachers = list(map(_all_rows, students)), list(map(_all_rows, teachers))
        if gathering is not None:
            (students, teachers), step = gathering.sides((students, teachers)), gathering.step
        known: dict[str, Any] = {}
        if self._asked_by_loss:
            known = told_tokens(self._asked_by_loss, comparison.aligned_axes(0))
        if self._on_head:
            said, bound = (self.name, self.loss_name), {**self.options, **self.inputs}
            known.update(free_head_arguments(said, self._accepted, comparison, bound))
        if self._told_valid:
            known["valid"] = self._counting.valid(students[0], step)
        try:
            values = self._function(
                *students, *teachers, **{**step.arguments, **self._options_now(), **known}
            )
        except ShapeError as error:
            raise ShapeError(f"term {self.name!r}: {error}") from None
        if not self._reached and self.training and torch.is_grad_enabled():
            self._check_reached(values)
        kept = self._counting.kept(values, (students[0], teachers[0]), step)
        if self.token_weights is not None and step.weights is not None and len(values):
            rows = self._counting.is_of_rows(teachers[0])
            values = self.token_weights.applied(self.name, step.weights, values, kept, rows=rows)
        return values, kept

    def _options_now(self) -> dict[str, Any]:
        """The options of this step, those that learn with gradient."""
        return {**self.options, **current(self.learned)} if self.learned else self.options

    def _check_reached(self, values: Tensor) -> None:
        if not torch.compiler.is_compiling():
            check_reached(self.name, values, self.learned)
            self._reached = True

    def _shares(self, normalizer: Number, layers: int) -> list[Number]:
        """The divisor of each of the student's layers."""
        check_number(self._normalizer, normalizer)
        return [of_layer(self._normalizer, normalizer, i, layers) for i in range(layers)]

    def values(
        self, students: Sequence[Any], teachers: Sequence[Any], batch: Mapping[str, Any]
    ) -> Tensor:
        """The loss's values of one layer of both sides, as they are: no aligner, no mean."""
        assert self._function is not None
        arguments = {name: self._entry(batch, name, key) for name, key in self.inputs.items()}
        unknown = dict.fromkeys(self._asked_by_loss)
        return self._function(*students, *teachers, **arguments, **self._options_now(), **unknown)

    @property
    def takes_tokens(self) -> bool:
        """Whether an aligner, or the loss, asks which tokens the entries of a signal are."""
        return bool(self._asked_by_loss) or self.aligners.take_tokens

    @property
    def has_values_of_examples(self) -> bool:
        """Whether its loss is known to return values of each example of a batch."""
        return self._counting.has_values_of_examples

    def build_aligners(
        self, student: Signals, teacher: TeacherSignals, batch: Mapping[str, Any] | None = None
    ) -> None:
        """Make what the aligners train from one example's signals; what exists stays."""
        comparison = self.compare(student, teacher, batch)
        pair = comparison.pairs[0]
        for index, (one, other) in enumerate(zip(pair.students, pair.teachers, strict=True)):
            self.aligners.build(widened(one), widened(other), comparison.axes(index))

    def _mask_entry(self, name: str, batch: Mapping[str, Any] | None) -> Tensor:
        """The batch entry of ``mask``; its integers are looked at until they prove to be labels."""
        given = self._entry(batch, "mask", name)
        mask = entry_mask(self.name, name, given, look=not self._holds_labels)
        if not self._holds_labels and given.dtype != torch.bool and given.numel():
            self._holds_labels = True
        return mask

    def _entry(self, batch: Mapping[str, Any] | None, argument: str, key: str) -> Any:
        if batch is None or key not in batch:
            message = unknown_name("batch entry", key, batch or {})
            raise SignalError(f"term {self.name!r} binds {argument!r} to the batch: {message}")
        return batch[key]

    def extra_repr(self) -> str:
        return f"{self.name!r}, weight={self.weight}"


def default_name(
    loss: str,
    on: Sequence[Compared],
    teacher: str | Sequence[str] | None,
    ensemble: str | Mapping[str, float] | None,
) -> str:
    """The name of a term that was given none: ``"<loss>/<on>@<teacher>"``."""
    if not on:
        return TASK
    label = f"{loss}/{label_of(on)}"
    return label + label_of_teachers(given_names(label, teacher, ensemble))


def _all_rows(signal: Any) -> Any:
    return signal.with_rows(None) if isinstance(signal, Attention) else signal
