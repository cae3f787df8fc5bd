"""One weighted loss on one signal, and their sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .._attention import Attention, widen
from .._backbone.signals import Axes, Signals
from .._plugins.registry import lookup
from .._plugins.specs import LossSpec, resolve
from .._tables import validated
from ..errors import OptionError, RecipeError, ShapeError, SignalError, unknown_name
from .align import make_aligner, takes_tokens
from .averaging import Per, averaged, counted_entries
from .options import checked_options
from .schedule import Schedule

Layers = Literal["last", "all"] | Sequence[tuple[int, int]]
Rows = Literal["valid", "all"]

TASK = "task"


class Result(NamedTuple):
    """What an objective makes of one batch.

    Attributes:
        loss: the scalar to call ``backward`` on: the sum of weight x part.
        parts: term -> its unweighted value, detached, float32.
        weights: term -> the weight it had; a term of weight 0 is not computed.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    weights: dict[str, float]


class Term(nn.Module):
    """One weighted loss on one signal.

    Args:
        loss: a registered name, a function ``(student, teacher, *, ...)``, or ``"task"``: the
            student's own loss.
        on: a signal, or a list of them: all of the student's come first, then the teacher's.
        layers: of signals with layers: ``"last"``, ``"all"`` (equal depths), or pairs
            ``[student, teacher]``. The value is the mean over the chosen pairs.
        rows: ``"valid"`` leaves padding out; ``"all"`` averages over padded positions too, as the
            DiDE paper does.
        per: ``"example"``: the mean over examples of each example's mean, so that splitting a
            batch changes nothing; ``"row"``: the mean over all positions.
        align: aligners, by name or ``{"name": ..., **options}``, applied in this order.
        weight: a number >= 0, or a :class:`Schedule` or its keys.
        inputs: tensor argument of the loss -> batch entry.
        options: the loss's other keyword-only parameters.
        name: what ``parts`` calls it; ``"<loss>/<on>"`` by default.

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
        on: str | Sequence[str] = (),
        layers: Layers = "last",
        rows: Rows = "valid",
        per: Per = "example",
        align: Sequence[str | Mapping[str, Any]] = (),
        weight: float | Schedule | Mapping[str, Any] = 1.0,
        inputs: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.loss_name = loss if isinstance(loss, str) else getattr(loss, "__name__", "loss")
        self.on = (on,) if isinstance(on, str) else tuple(on)
        self.layers, self.rows, self.per = layers, rows, per
        self.weight = _checked_weight(weight)
        _check_choice("rows", rows, ("valid", "all"))
        _check_choice("per", per, ("example", "row"))
        if isinstance(layers, str):
            _check_choice("layers", layers, ("last", "all"))
        self.inputs = dict(inputs or {})
        self.name = name or "/".join([self.loss_name, "+".join(self.on)] if self.on else [TASK])
        self.is_task = loss == TASK
        if self.is_task:
            self._function: Callable[..., Tensor] | None = None
            _refuse_on_task(self.on, self.inputs, options, align)
        else:
            self._function = _loss_function(loss)
            if not self.on:
                raise RecipeError(f"term {self.name!r} needs `on`: the signal that it compares")
        self.options = checked_options(self.name, self._function, options or {}, self.inputs)
        self.aligner_names = [one if isinstance(one, str) else one.get("name", "") for one in align]
        self.aligners = nn.ModuleList(make_aligner(one) for one in align)

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

    def forward(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any] | None = None
    ) -> Tensor:
        """The unweighted value, a scalar."""
        given = {arg: self._entry(batch, arg, key) for arg, key in self.inputs.items()}
        of_student = [self.signal("student", student, name) for name in self.on]
        of_teacher = [self.signal("teacher", teacher, name) for name in self.on]
        if self.training and torch.is_grad_enabled():
            self.check_gradient(of_student)
        masks = [
            m for side in (student, teacher) for n in self.on if (m := side.mask(n)) is not None
        ]
        axes = [(student.axes(name), teacher.axes(name)) for name in self.on]
        pairs = self.layer_pairs(of_student, of_teacher)
        values = [self._value(s, t, axes, masks, given) for s, t in pairs]
        return values[0] if len(values) == 1 else torch.stack(values).mean()

    def _value(
        self,
        students: Sequence[Any],
        teachers: Sequence[Any],
        axes: Sequence[tuple[Axes, Axes]],
        masks: Sequence[Tensor],
        given: Mapping[str, Any],
    ) -> Tensor:
        """One layer's value: align, compare, average."""
        assert self._function is not None
        pairs = zip(map(_widened, students), map(_widened, teachers), axes, strict=True)
        aligned = [self.aligned(*pair) for pair in pairs]
        students, teachers = [s for s, _ in aligned], [t for _, t in aligned]
        if self.rows == "all":
            students = [_all_rows(one) for one in students]
            teachers = [_all_rows(one) for one in teachers]
            masks = ()
        try:
            values = self._function(*students, *teachers, **given, **self.options)
        except ShapeError as error:
            raise ShapeError(f"term {self.name!r}: {error}") from None
        counted = counted_entries(values, students[0], teachers[0], masks)
        return averaged(values, counted, self.per)

    @property
    def is_built(self) -> bool:
        """Whether every parameter of its aligners exists."""
        return all(getattr(aligner, "is_built", True) for aligner in self.aligners)

    def build_aligners(self, student: Signals, teacher: Signals) -> None:
        """Make what the aligners train from one example's signals; what exists stays."""
        of_student = [self.signal("student", student, name) for name in self.on]
        of_teacher = [self.signal("teacher", teacher, name) for name in self.on]
        students, teachers = self.layer_pairs(of_student, of_teacher)[0]
        axes = [(student.axes(name), teacher.axes(name)) for name in self.on]
        pairs = zip(map(_widened, students), map(_widened, teachers), axes, strict=True)
        for one, other, known in pairs:
            for aligner in self.aligners:
                build: Callable[[Any, Any], None] | None = getattr(aligner, "build", None)
                if build is not None:
                    build(one, other)
                one, other = self._align(aligner, one, other, known)

    def aligned(self, student: Any, teacher: Any, axes: tuple[Axes, Axes]) -> tuple[Any, Any]:
        """One layer of both sides, after the term's aligners."""
        for aligner in self.aligners:
            student, teacher = self._align(aligner, student, teacher, axes)
        return student, teacher

    def _align(
        self, aligner: nn.Module, student: Any, teacher: Any, axes: tuple[Axes, Axes]
    ) -> tuple[Any, Any]:
        known = {}
        if takes_tokens(aligner):
            known = {"student_tokens": axes[0], "teacher_tokens": axes[1]}
        try:
            one, other = aligner(student, teacher, **known)
        except ShapeError as error:
            raise ShapeError(f"term {self.name!r}: {error}") from None
        return one, other

    def signal(self, side: str, signals: Signals, name: str) -> Any:
        """One side's signal, or an error that says why there is none."""
        if name in signals.absent:
            raise SignalError(
                f"term {self.name!r} needs {name!r} of the {side}: {signals.absent[name]}"
            )
        if name not in signals:
            message = unknown_name(f"signal of the {side}", name, signals)
            raise SignalError(f"term {self.name!r}: {message}; its adapter offers no other")
        return signals[name]

    def _entry(self, batch: Mapping[str, Any] | None, argument: str, key: str) -> Any:
        if batch is None or key not in batch:
            message = unknown_name("batch entry", key, batch or {})
            raise SignalError(f"term {self.name!r} binds {argument!r} to the batch: {message}")
        return batch[key]

    def check_gradient(self, signals: Sequence[Any]) -> None:
        """Refuse signals of the student that can teach it nothing."""
        for name, signal in zip(self.on, signals, strict=True):
            layers = [signal] if isinstance(signal, (Tensor, Attention)) else signal
            if not any(layer.requires_grad for layer in layers):
                raise SignalError(
                    f"term {self.name!r}: the student's signal {name!r} carries no gradient, so "
                    "nothing would be learned from it: the student ran under no_grad, detached "
                    "it, has every parameter frozen, or was checkpointed with use_reentrant=True "
                    "(use_reentrant=False keeps the gradient)"
                )

    def layer_pairs(
        self, students: Sequence[Any], teachers: Sequence[Any]
    ) -> list[tuple[list[Any], list[Any]]]:
        """Student layer with teacher layer, as ``layers`` says."""
        signals = [*students, *teachers]
        if all(isinstance(one, (Tensor, Attention)) for one in signals):
            if self.layers != "last":
                raise RecipeError(
                    f"term {self.name!r}: layers = {self.layers!r} has no meaning for a signal "
                    "without layers"
                )
            return [(list(students), list(teachers))]
        depths = len(students[0]), len(teachers[0])
        pairs = self._chosen_layers(*depths)
        try:
            return [([s[i] for s in students], [t[j] for t in teachers]) for i, j in pairs]
        except IndexError:
            raise RecipeError(
                f"term {self.name!r}: layers = {self.layers!r} names a layer that is not there; "
                f"the student has {depths[0]}, the teacher {depths[1]}"
            ) from None

    def _chosen_layers(self, student: int, teacher: int) -> list[tuple[int, int]]:
        if self.layers == "last":
            return [(-1, -1)]
        if self.layers != "all":
            return [(i, j) for i, j in self.layers]
        if student != teacher:
            raise RecipeError(
                f'term {self.name!r}: layers = "all" needs equal depths; the student has '
                f"{student} layers and the teacher {teacher}; name pairs: layers = [[0, 1], ...]"
            )
        return [(i, i) for i in range(student)]

    def extra_repr(self) -> str:
        return f"{self.name!r}, weight={self.weight}"


class Objective(nn.Module):
    """The sum of weighted terms, with a report of its parts.

    Args:
        terms: their names must differ.

    Examples:
        >>> objective = Objective([Term("kl_divergence", on="logits", weight=0.5)])
        >>> student = Signals({"logits": torch.tensor([[0.0, 0.0]], requires_grad=True)})
        >>> teacher = Signals({"logits": torch.tensor([[0.0, 1.0986]])})
        >>> result = objective(student, teacher)
        >>> result.parts, result.loss.item() == 0.5 * result.parts["kl_divergence/logits"].item()
        ({'kl_divergence/logits': tensor(0.1308)}, True)
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        super().__init__()
        if not terms:
            raise RecipeError("an objective needs at least one term")
        names = [term.name for term in terms]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise RecipeError(f"several terms are called {min(twice)!r}; give each a `name`")
        self.terms = nn.ModuleList(terms)

    def active(self, progress: float | None) -> dict[str, float]:
        """Term -> its weight at this progress, without those of weight 0."""
        weights = {term.name: term.weight_at(progress) for term in self.each()}
        return {name: weight for name, weight in weights.items() if weight != 0}

    def build_aligners(self, student: Signals, teacher: Signals) -> None:
        """Make what aligners train from one example's signals."""
        with torch.no_grad():
            for term in self.each():
                if not term.is_built:
                    term.build_aligners(student, teacher)

    def compares(self, progress: float | None) -> bool:
        """Whether a term at this progress needs the teacher."""
        active = self.active(progress)
        return any(term.name in active and not term.is_task for term in self.each())

    def forward(
        self,
        student: Signals,
        teacher: Signals,
        *,
        batch: Mapping[str, Any] | None = None,
        task: Tensor | None = None,
        progress: float | None = None,
    ) -> Result:
        """The loss of one batch.

        Args:
            student: the student's signals, with gradient.
            teacher: the teacher's, usually detached.
            batch: where terms with ``inputs`` find their labels.
            task: the student's own loss, for a term ``"task"``.
            progress: the part of training that is done, in [0, 1]; scheduled weights need it.
        """
        active = self.active(progress)
        if not active and self.training:
            raise RecipeError(f"every term has weight 0 at progress {progress}: nothing to learn")
        parts: dict[str, Tensor] = {}
        total: Tensor | None = None
        terms = self.each()
        with _autocast_off():
            for term in terms:
                weight = active.get(term.name)
                if weight is None:
                    continue
                value = _task_loss(task) if term.is_task else term(student, teacher, batch)
                total = _plus(total, weight, value)
                parts[term.name] = value.detach().float()
        weights = {term.name: active.get(term.name, 0.0) for term in terms}
        return Result(torch.zeros(()) if total is None else total, parts, weights)

    def each(self) -> list[Term]:
        """The terms, in their order."""
        return list(self.terms)  # type: ignore[arg-type]


def _plus(total: Tensor | None, weight: float, value: Tensor) -> Tensor:
    """The sum and one more weighted value, in float32 at least, on the value's device."""
    if total is None:
        return weight * widen(value)
    return total.to(value.device).add(value, alpha=weight)


def _task_loss(task: Tensor | None) -> Tensor:
    if task is None:
        raise SignalError(
            'a term "task" takes the student\'s own loss: its output needs a field `loss`, or the '
            "distiller a function, Distiller(..., task_loss=lambda output, batch: ...)"
        )
    return task


@contextmanager
def _autocast_off() -> Iterator[None]:
    """Losses run in the dtype that they choose."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _widened(signal: Any) -> Any:
    """At least float32; an attention sees to it when it computes its scores."""
    return signal if isinstance(signal, Attention) else widen(signal)


def _all_rows(signal: Any) -> Any:
    return signal.with_rows(None) if isinstance(signal, Attention) else signal


def _loss_function(loss: str | Callable[..., Tensor]) -> Callable[..., Tensor]:
    if callable(loss):
        return loss
    function: Callable[..., Tensor] = resolve(lookup(LossSpec, loss).function)
    return function


def _checked_weight(weight: float | Schedule | Mapping[str, Any]) -> float | Schedule:
    if isinstance(weight, Schedule):
        return weight
    if isinstance(weight, Mapping):
        return validated(Schedule, weight, "weight", RecipeError)
    if not 0 <= weight < math.inf:
        raise OptionError(f"a weight is a finite number >= 0 or a schedule; got {weight}")
    return weight


def _check_choice(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise unknown_name(f"choice of `{what}`", given, known)


def _refuse_on_task(*given: Any) -> None:
    if any(given):
        raise RecipeError(
            'a term "task" is the student\'s own loss: it takes a weight and a name, and no `on`, '
            "`inputs`, `options` or `align`"
        )
