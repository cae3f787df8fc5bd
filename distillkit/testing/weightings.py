"""Check that a weighting keeps what an objective, copies and checkpoints rely on."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._objective.weighting.making import Weights, weights_of
from .._objective.weighting.protocol import State, StepStatistics
from .._objective.weighting.weights import SettledWeights, checked_factors, checked_state
from .._plugins.registry import lookup
from .._plugins.specs import WeightingSpec
from .results import CheckResult
from .running import results_of
from .verdicts import NotApplicable, UnmetError

TERMS = ("task", "one", "two")
_STEPS = 12


@dataclass(frozen=True)
class _Case:
    """A weighting to check, made anew by each check."""

    spec: WeightingSpec
    options: Mapping[str, Any] = field(default_factory=dict)

    def made(self) -> Weights:
        found = weights_of(self.spec, TERMS, self.options)
        if found is None:
            raise NotApplicable("it leaves the terms' own weights as they are")
        return found

    def settled(self) -> SettledWeights:
        made = self.made()
        if not isinstance(made, SettledWeights):
            raise NotApplicable("an optimizer learns it")
        return made

    def learned(self) -> nn.Module:
        made = self.made()
        if isinstance(made, SettledWeights):
            raise NotApplicable("it learns nothing by gradient")
        return made.weighting


def check_weighting(
    weighting: WeightingSpec | str, *, options: Mapping[str, Any] | None = None
) -> list[CheckResult]:
    """Run every check of a weighting, on three terms called ``task``, ``one`` and ``two``.

    Args:
        weighting: a spec, or a registered name.
        options: of the recipe's ``weighting`` table.

    Returns:
        One result for each check; ``seen`` says what was found, or what was wrong.

    Examples:
        >>> print(check_weighting("gradnorm", options={"alpha": 0.5})[0])
        passed  factors: 12 steps, from 0.966 to 1.03
    """
    spec = lookup(WeightingSpec, weighting) if isinstance(weighting, str) else weighting
    return results_of(_Case(spec, options or {}), CHECKS)


def factors(case: _Case) -> str:
    """Every factor is a finite number, at least 0, one for each term of the step."""
    made = case.made()
    found = []
    if isinstance(made, SettledWeights):
        for one, _ in _run(made):
            found.append(one)
    else:
        for terms in ([0, 1, 2], [1], [2, 0]):
            one, additions = made.weighting(torch.tensor(terms))
            found.append(checked_factors(case.spec.name, one, len(terms)))
            checked_factors(f"{case.spec.name}, additions", additions, len(terms))
    joined = torch.cat(found)
    if (joined < 0).any():
        raise UnmetError(f"it returns the factor {joined.min():.3g}; a weight is at least 0")
    return f"{len(found)} steps, from {joined.min():.3g} to {joined.max():.3g}"


def repeats(case: _Case) -> str:
    """Equal steps give equal factors and states."""
    one, other = ([(f, dict(s)) for f, s in _run(case.settled())] for _ in "ab")
    for (mine, state), (again, as_well) in zip(one, other, strict=True):
        same = all(torch.equal(state[name], as_well[name]) for name in state)
        if not (torch.equal(mine, again) and same):
            raise UnmetError("two runs over the same steps differ")
    return f"two runs of {_STEPS} steps are equal"


def leaves_its_inputs(case: _Case) -> str:
    """It changes neither the step nor the state that it is given."""
    made = case.settled()
    state: State = checked_state(made.name, made.settled.start())
    for step in _steps(gradients=made.settled.reads == "gradients"):
        given = [*step, *(state[name] for name in sorted(state))]
        before = [one.clone() for one in given]
        following = made.settled.settle(step, state)[1]
        if not all(torch.equal(one, old) for one, old in zip(given, before, strict=True)):
            raise UnmetError("settle changes what it is given in place; return a new state")
        state = checked_state(made.name, following)
    return "both are as they were"


def goes_on(case: _Case) -> str:
    """After a checkpoint, a copy or a pickle it goes on as if nothing had happened."""
    made = case.settled()
    expected = [one for one, _ in _run(made)]
    ways = {**_WAYS}
    if not isinstance(case.spec.factory, str):
        del ways["a pickle"]  # an object of a script need not have a name that a pickle finds
    for what, moved in ways.items():
        before, after = case.settled(), []
        for i, (one, state) in enumerate(_run(before)):
            after.append(one)
            if i == _STEPS // 2:
                rest = moved(before, state, case)
                after.extend(f for f, _ in _run(rest[0], rest[1], first=i + 1))
                break
        if not all(torch.equal(one, other) for one, other in zip(after, expected, strict=True)):
            raise UnmetError(
                f"after {what} it goes on with other factors: is a state hidden in it?"
            )
    return ", ".join(ways)


def learns(case: _Case) -> str:
    """The loss gives every parameter a finite gradient."""
    module = case.learned()
    found, additions = module(torch.arange(len(TERMS)))
    (found * torch.tensor([0.5, 1.0, 3.0]) + additions).sum().backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is None or not parameter.grad.isfinite().all():
            raise UnmetError(f"the gradient of {name} is {parameter.grad}")
    return ", ".join(name for name, _ in module.named_parameters())


CHECKS: dict[str, Callable[[Any], str]] = {
    "factors": factors,
    "repeats": repeats,
    "leaves_its_inputs": leaves_its_inputs,
    "goes_on": goes_on,
    "learns": learns,
}

_Moved = tuple[SettledWeights, State]
_WAYS: dict[str, Callable[[SettledWeights, State, _Case], _Moved]] = {
    "a checkpoint": lambda _, state, case: (case.settled(), state),
    "a copy": lambda made, state, _: (copy.deepcopy(made), state),
    "a pickle": lambda made, state, _: (pickle.loads(pickle.dumps(made)), state),
}


def _run(
    made: SettledWeights, state: State | None = None, *, first: int = 0
) -> Iterator[tuple[Tensor, State]]:
    """The factors and the state after each step, from one of them on."""
    weighting, name = made.settled, made.name
    known = checked_state(name, weighting.start())
    current = known if state is None else state
    for step in _steps(gradients=weighting.reads == "gradients")[first:]:
        found, current = weighting.settle(step, dict(current))
        current = checked_state(name, current, known)
        yield checked_factors(name, found, len(step.terms)), current


def _steps(*, gradients: bool) -> list[StepStatistics]:
    """Steps of which some lack a term, with losses that fall and a loss of 0."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(_STEPS):
        terms = torch.tensor([[0, 1, 2], [0, 2], [0, 1, 2], [1, 2]][i % 4])
        k = len(terms)
        losses = torch.rand(k, generator=generator, dtype=torch.float64) / (1 + i)
        losses[0] = 0 if i == 5 else losses[0]
        rows = torch.randn(k, 4, generator=generator, dtype=torch.float64)
        gramian = rows @ rows.T if gradients else torch.zeros(0, 0, dtype=torch.float64)
        ones = torch.ones(k, dtype=torch.float64)
        found.append(StepStatistics(terms, losses, ones / 2, ones, gramian))
    return found
