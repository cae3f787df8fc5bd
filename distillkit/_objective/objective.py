"""The sum of weighted terms, with a report of its parts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._attention import widen
from .._backbone.depth import LayerIndices, Wanted
from .._backbone.signals import Signals
from ..errors import RecipeError, SignalError
from .comparison import Comparison
from .ensemble import TeacherSignals
from .normalizer import Normalizer, Number, divisor, normalizer_of_terms, share_of_task
from .term import Term
from .weighting.making import make_weights
from .weighting.weights import Factors, Part


class Result(NamedTuple):
    """The result of an objective for one batch.

    Attributes:
        loss: the scalar to call ``backward`` on: the sum of weight x part, and what a learned
            weighting adds.
        parts: term -> its unweighted value, detached, float32.
        weights: term -> the weight it had, its own times its factor; a term whose own weight is 0
            is not computed.
        counts: computed term -> how much counted, detached: the number of values, of rows and
            positions that count for ``per = "row"``, of examples for ``per = "example"``; one
            number, or ``(L,)`` for L pairs of layers. The task has ``task_items``, where given.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    weights: dict[str, float]
    counts: dict[str, Tensor]


class Objective(nn.Module):
    """The sum of weighted terms, with a report of its parts.

    Args:
        terms: their names must differ.
        weighting: what multiplies the terms' own weights, by name or ``{"name": ..., **options}``;
            ``"static"``: nothing.

    Raises:
        UnknownNameError: no such weighting.
        RecipeError: no term, two of one name, options that the weighting does not take.

    Examples:
        >>> objective = Objective([Term("kl_divergence", on="logits", weight=0.5)])
        >>> student = Signals({"logits": torch.tensor([[0.0, 0.0]], requires_grad=True)})
        >>> teacher = Signals({"logits": torch.tensor([[0.0, 1.0986]])})
        >>> result = objective(student, teacher)
        >>> result.parts, result.loss.item() == 0.5 * result.parts["kl_divergence/logits"].item()
        ({'kl_divergence/logits': tensor(0.1308)}, True)
    """

    def __init__(
        self, terms: Sequence[Term], *, weighting: str | Mapping[str, Any] = "static"
    ) -> None:
        super().__init__()
        if not terms:
            raise RecipeError("an objective needs at least one term")
        names = [term.name for term in terms]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise RecipeError(f"several terms are called {min(twice)!r}; give each a `name`")
        self.terms = nn.ModuleList(terms)
        self.weighting = make_weights(weighting, names)

    def active(self, progress: float | None) -> dict[str, float]:
        """Term -> its weight at this progress, without those of weight 0."""
        weights = {term.name: term.weight_at(progress) for term in self.each()}
        return {name: weight for name, weight in weights.items() if weight != 0}

    def of_teacher(self, name: str, names: Sequence[str]) -> Objective:
        """The terms that learn from one of several teachers; they are shared, not copied.

        Args:
            name: its name.
            names: those of all teachers.

        Raises:
            RecipeError: there is no such term; a term that names no teacher.
            UnknownNameError: a term of an unknown teacher.
        """
        found = [term for term in self._comparing() if name in term.teachers.names(names)]
        if not found:
            raise RecipeError(
                f"no term learns from the teacher {name!r}: name it in one, teacher = "
                f'"{name}", or leave it out'
            )
        return Objective(found)

    def check_one_teacher(self) -> None:
        """Refuse terms that name their teacher, where there is a single one without a name."""
        for term in self._comparing():
            term.teachers.names(None)

    def teachers(self, active: Collection[str], names: Sequence[str]) -> list[str]:
        """Those of several teachers that terms in ``active`` learn from."""
        terms = [term for term in self._comparing() if term.name in active]
        needed = {name for term in terms for name in term.teachers.names(names)}
        return [name for name in names if name in needed]

    def _comparing(self) -> list[Term]:
        return [term for term in self.each() if not term.is_task]

    def build_aligners(
        self, student: Signals, teacher: TeacherSignals, batch: Mapping[str, Any] | None = None
    ) -> None:
        """Make what aligners train from one example's signals."""
        with torch.no_grad():
            for term in self.each():
                if not term.aligners.are_built:
                    term.build_aligners(student, teacher, batch)

    def compares(self, progress: float | None) -> bool:
        """Whether a term at this progress needs the teacher."""
        active = self.active(progress)
        return any(term.name in active and not term.is_task for term in self.each())

    def compare(
        self,
        student: Signals,
        teacher: TeacherSignals,
        active: Collection[str],
        batch: Mapping[str, Any] | None = None,
    ) -> dict[str, Comparison]:
        """Term -> both of its sides in this step, of the terms in ``active`` that compare.

        Raises:
            SignalError: a signal that one side does not have.
            RecipeError: layers that are not there.
        """
        return {
            term.name: term.compare(student, teacher, batch)
            for term in self._comparing()
            if term.name in active
        }

    def forward(  # noqa: PLR0913 (two sides; the rest by keyword)
        self,
        student: Signals,
        teacher: TeacherSignals,
        *,
        batch: Mapping[str, Any] | None = None,
        task: Tensor | None = None,
        progress: float | None = None,
        normalizer: Normalizer | None = None,
        task_items: Number | None = None,
        comparisons: Mapping[str, Comparison] | None = None,
        model: nn.Module | None = None,
    ) -> Result:
        """The loss of one batch.

        Args:
            student: the student's signals, with gradient.
            teacher: the teacher's, usually detached; of several teachers, name -> signals.
            batch: where terms with ``inputs`` or ``mask`` find their entries.
            task: the student's own loss, for a term ``"task"``.
            progress: the part of training that is done, in [0, 1]; scheduled weights need it.
            normalizer: how much counts in the whole batch, of which this is a part (accumulated,
                or on several devices): term -> what its ``counts`` add up to over the parts, or
                one number for every term but the task. The losses of the parts then add up to the
                loss of the whole.
            task_items: how much the task's mean was over, such as labelled tokens; with a
                normalizer of the task, its share of the whole.
            comparisons: what :meth:`compare` made of these signals before.
            model: the student, for a weighting that settles once for each step of its optimizer.

        Raises:
            RecipeError: a progress or normalizer is missing, a normalizer of an unknown term;
                every weight is 0.
            OptionError: a normalizer that nobody can have counted.
        """
        active = self.active(progress)
        if not active and self.training:
            raise RecipeError(f"every term has weight 0 at progress {progress}: nothing to learn")
        terms = self.each()
        numbers: Mapping[str, Number] = {}
        if normalizer is not None:
            computed = [term.name for term in terms if term.name in active and not term.is_task]
            numbers = normalizer_of_terms(normalizer, [term.name for term in terms], computed)
        known = {} if comparisons is None else comparisons
        parts: dict[str, Part] = {}
        counts: dict[str, Tensor] = {}
        with autocast_off():
            for term in terms:
                name = term.name
                if name not in active:
                    continue
                share = numbers.get(name)
                if term.is_task:
                    value = share_of_task(_task_loss(task), task_items, share)
                    if task_items is not None:
                        counts[name] = torch.as_tensor(task_items).detach()
                else:
                    both = known.get(name) or term.compare(student, teacher, batch)
                    value = term(student, teacher, batch, normalizer=share, comparison=both)
                    counts[name] = both.counts
                parts[name] = Part(value, active[name], _share(counts.get(name), share))
            total, factors = self._weighted(parts, model)
        weights = {term.name: active.get(term.name, 0.0) for term in terms}
        for name, factor in factors.numbers.items():
            weights[name] *= factor
        values = {name: part.value.detach().float() for name, part in parts.items()}
        return Result(total, values, weights, counts)

    def _weighted(
        self, parts: Mapping[str, Part], model: nn.Module | None
    ) -> tuple[Tensor, Factors]:
        """The weighted sum of the terms, and the factors of their own weights."""
        factors = Factors({}, {})
        if self.weighting is not None and parts:
            factors = self.weighting(parts, model)
        total: Tensor | None = None
        for name, part in parts.items():
            total = _plus(total, part.prior * factors.factors.get(name, 1.0), part.value)
        if total is None:
            return torch.zeros(()), factors
        if factors.addition is not None:
            total = _plus(total, 1.0, factors.addition)
        return total, factors

    @property
    def names(self) -> list[str]:
        """The names of the terms."""
        return [term.name for term in self.each()]

    def each(self) -> list[Term]:
        """The terms, in their order."""
        return list(self.terms)  # type: ignore[arg-type]


def wanted_layers(objective: Objective, side: int) -> Wanted:
    """Signal -> the layers of one side (0: the student's, 1: the teacher's) that terms compare."""
    found: dict[str, LayerIndices] = {}
    for term in objective.each():
        layers = term.layers.wanted(side)
        for name in (one[side] for one in term.on):
            known = found.get(name, frozenset())
            if isinstance(known, str) or isinstance(layers, str):
                found[name] = "all"
            else:
                found[name] = known | layers
        weights = term.token_weights if side == 1 else None
        if weights is not None:
            held = found.get(weights.signal, frozenset())
            if not isinstance(held, str):
                found[weights.signal] = held | {weights.layer}
    return found


def _plus(total: Tensor | None, weight: float | Tensor, value: Tensor) -> Tensor:
    """The sum and one more weighted value, in float32 at least, on the value's device."""
    if isinstance(weight, Tensor):
        weight = weight.to(value.device)
    if total is None:
        return weight * (widen(value) if value.dtype.itemsize < 4 else value)
    if isinstance(weight, Tensor):
        return total.to(value.device) + weight * value
    return total.to(value.device).add(value, alpha=weight)


def _share(count: Tensor | None, normalizer: Number | None) -> Tensor | float:
    """The part of the whole batch that counted: over all parts, shares add up to 1."""
    if count is None or normalizer is None:
        return 1.0
    whole = divisor(normalizer)
    if isinstance(whole, Tensor):
        whole = whole.to(count.device)
    return (count / whole).float().mean()


def _task_loss(task: Tensor | None) -> Tensor:
    if task is None:
        raise SignalError(
            'a term "task" takes the student\'s own loss: its output needs a field `loss`, or the '
            "distiller a function, Distiller(..., task_loss=lambda output, batch: ...)"
        )
    return task


# torch refuses the question for a device that it cannot cast for, and a compiler to ask which are
_CASTING = tuple(
    device for device in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(device)
)


@contextmanager
def autocast_off() -> Iterator[None]:
    """Losses run in the dtype that they choose."""
    with ExitStack() as stack:
        for device in _CASTING:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
