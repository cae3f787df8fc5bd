"""The factors of an objective's terms in each call, and what they are settled by."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import RecipeError
from ..versions import Writes, writes
from .gradients import gradient_rows, parameters_at, refuse_reentrant
from .protocol import LearnedWeighting, SettledWeighting, State
from .sums import CallOfTerms, StepSums, from_first_rank, has_ranks

_MOST_CALLS = 1000  # an engine may step copies of the parameters, which nobody sees
_ONE_AT_A_TIME = threading.Lock()  # of the threads that may call one distiller; a copy needs none


class Part(NamedTuple):
    """One computed term of a call.

    Attributes:
        value: its unweighted value, a scalar with gradient.
        prior: its own weight, above 0.
        share: the part of the whole batch that counted in it; 1 without a normalizer.
    """

    value: Tensor
    prior: float
    share: Tensor | float


class Factors(NamedTuple):
    """What multiplies the terms' own weights in one call.

    Attributes:
        factors: term -> a number, or a scalar with gradient.
        numbers: term -> the same as a number.
        addition: what a learned weighting adds to the loss.
    """

    factors: Mapping[str, float | Tensor]
    numbers: Mapping[str, float]
    addition: Tensor | None = None


class LearnedWeights(nn.Module):
    """The factors that an optimizer learns.

    Args:
        name: of the weighting, for messages.
        terms: the names of all terms.
        weighting: a module that returns factors and additions.
    """

    def __init__(self, name: str, terms: Sequence[str], weighting: nn.Module) -> None:
        super().__init__()
        self.name, self._terms, self.weighting = name, tuple(terms), weighting

    def forward(self, parts: Mapping[str, Part], model: nn.Module | None) -> Factors:
        """The factors of the terms of a call."""
        del model
        device = next(iter(self.weighting.parameters())).device
        places = [self._terms.index(name) for name in parts]
        learned: LearnedWeighting = self.weighting
        factors, additions = learned(torch.tensor(places, device=device))
        numbers = checked_factors(self.name, factors, len(places)).tolist()
        addition = torch.zeros((), device=device)
        for part, one in zip(parts.values(), additions.unbind(), strict=True):
            share = part.share.to(device) if isinstance(part.share, Tensor) else part.share
            addition = addition + part.prior * share * one
        return Factors(
            dict(zip(parts, factors.unbind(), strict=True)),
            dict(zip(parts, numbers, strict=True)),
            addition,
        )


class SettledWeights(nn.Module):
    """The factors that settle once for each optimizer step, by what the step before it showed.

    A step is over where an optimizer has stepped the student's parameters, or something else has
    written into them, since the last call: the calls in between are its micro-batches. Calls in
    eval mode, or without gradient, show nothing and settle nothing. What is not finite settles
    nothing.

    Args:
        name: of the weighting, for messages.
        terms: the names of all terms.
        weighting: what settles.
        at: the modules of the student with respect to whose parameters gradients are taken; None:
            all.
        now: settle in the first call of a step, by this call, instead.
    """

    def __init__(
        self,
        name: str,
        terms: Sequence[str],
        weighting: SettledWeighting,
        *,
        at: str | None = None,
        now: bool = False,
    ) -> None:
        super().__init__()
        self.name, self._terms, self.settled = name, tuple(terms), weighting
        self._at, self._now = at, now
        self._reads_gradients = weighting.reads == "gradients"
        self._factors = torch.ones(len(terms), dtype=torch.float64)
        self._state = checked_state(name, weighting.start())
        self._sums = StepSums(len(terms), gradients=self._reads_gradients)
        self._written: Writes | None = None
        self._calls = 0
        self._looked = False

    def forward(self, parts: Mapping[str, Part], model: nn.Module | None) -> Factors:
        """The factors of the terms of a call.

        Args:
            parts: the computed terms.
            model: the student, whose parameters an optimizer steps.

        Raises:
            RecipeError: no student, or one that no optimizer steps; gradients that cannot be had; a
                weighting that returns no factors.
        """
        if self.training and torch.is_grad_enabled() and parts:
            if model is None:
                raise RecipeError(
                    f"the weighting {self.name!r} settles once for each step of the student: pass "
                    "it, objective(..., model=student)"
                )
            with _ONE_AT_A_TIME:
                self._observe(parts, model)
        listed: list[float] = self._factors.tolist()
        numbers = {name: listed[self._terms.index(name)] for name in parts}
        return Factors(numbers, numbers)

    def _observe(self, parts: Mapping[str, Part], model: nn.Module) -> None:
        now = writes(p for p in model.parameters() if p.requires_grad)
        begins = self._agree(begins=self._written is None or now.follow(self._written))
        self._written = now
        self._calls = 1 if begins else self._calls + 1
        if self._calls > _MOST_CALLS:
            raise RecipeError(
                f"the weighting {self.name!r} settles once for each step of the student's "
                f"optimizer, and none was seen in {_MOST_CALLS} calls. Step a "
                "torch.optim.Optimizer that has the student's own parameters, or use a weighting "
                "that needs no step, "
                '"uncertainty" or "static"'
            )
        if begins and not self._now:
            self._settle()
        if begins:
            self._sums.clear()
        self._sums.add(self._call(parts, model))
        if begins and self._now:
            self._settle()

    def _agree(self, *, begins: bool) -> bool:
        """Take the first rank's state, so that every rank weighs alike; whether a step begins."""
        if not has_ranks():
            return begins
        mine = torch.cat([self._factors.new_tensor([begins]), self.get_extra_state()])
        agreed = from_first_rank(mine)
        self._unpack(agreed[1:], keep_rows=True)
        return bool(agreed[0])

    def _call(self, parts: Mapping[str, Part], model: nn.Module) -> CallOfTerms:
        values = [part.value for part in parts.values()]
        device = values[0].device
        rows = None
        if self._reads_gradients:
            where = "the student" if self._at is None else f"the modules {self._at!r}"
            if not self._looked:
                refuse_reentrant(values)
                self._looked = True
            rows = gradient_rows(values, list(parts), parameters_at(model, self._at), where)
        shares = [torch.as_tensor(part.share).detach() for part in parts.values()]
        return CallOfTerms(
            torch.tensor([self._terms.index(name) for name in parts]),
            torch.stack([value.detach().to(device) for value in values]),
            torch.stack([share.to(device, torch.float64) for share in shares]),
            [part.prior for part in parts.values()],
            rows,
        )

    def _settle(self) -> None:
        step = self._sums.statistics(self._factors)
        if step is None:
            return
        given = {name: value.clone() for name, value in self._state.items()}
        factors, state = self.settled.settle(step, given)
        found = checked_factors(self.name, factors, len(step.terms))
        self._factors = self._factors.index_put((step.terms,), found)
        self._state = checked_state(self.name, state, self._state)

    def get_extra_state(self) -> Tensor:
        """Everything that it remembers in one vector, which any format of a checkpoint takes."""
        return torch.cat([one.to("cpu", torch.float64).reshape(-1) for one in self._kept()])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on where another one stopped.

        Raises:
            RecipeError: the state of another weighting, or of other terms.
        """
        expected = self.get_extra_state().numel()
        if not isinstance(state, Tensor) or state.numel() != expected:
            size = state.numel() if isinstance(state, Tensor) else type(state).__name__
            raise RecipeError(
                f"this state is not of the weighting {self.name!r} with {len(self._terms)} terms, "
                f"which remembers {expected} numbers; got {size}. Load it into the recipe that it "
                "was saved with"
            )
        self._unpack(state.detach().to("cpu", torch.float64))
        self._written = None

    def _kept(self) -> list[Tensor]:
        """Every tensor of its state, in the order of that vector."""
        state = [self._state[name] for name in sorted(self._state)]
        return [self._factors, *self._sums.tensors(), *state]

    def _unpack(self, flat: Tensor, *, keep_rows: bool = False) -> None:
        kept = self._kept()
        pieces = torch.split(flat, [one.numel() for one in kept])
        found = [one.reshape(old.shape).clone() for one, old in zip(pieces, kept, strict=True)]
        self._factors = found[0]
        self._state = dict(zip(sorted(self._state), found[5:], strict=True))
        self._sums.load(found[1:5], keep_rows=keep_rows)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has other parameters: its first call begins a step."""
        return {**vars(self), "_written": None}


def checked_factors(name: str, factors: Tensor, count: int) -> Tensor:
    """The factors as numbers on the CPU.

    Raises:
        RecipeError: none, or not one finite number for each term.
    """
    if not isinstance(factors, Tensor) or factors.shape != (count,):
        shape = tuple(factors.shape) if isinstance(factors, Tensor) else type(factors).__name__
        raise RecipeError(
            f"the weighting {name!r} returns factors of the step's terms, ({count},); got {shape}"
        )
    found = factors.detach().to("cpu", torch.float64)
    if not found.isfinite().all():
        raise RecipeError(f"the weighting {name!r} returned factors that are not finite: {found}")
    return found


def checked_state(name: str, state: State, before: State | None = None) -> dict[str, Tensor]:
    """A state as float64 tensors on the CPU.

    Raises:
        RecipeError: something else, or other names or shapes than before.
    """
    try:
        found = {key: value.detach().to("cpu", torch.float64) for key, value in state.items()}
    except AttributeError:
        raise RecipeError(f"the state of the weighting {name!r} is name -> tensor") from None
    shapes = {key: tuple(value.shape) for key, value in found.items()}
    known = shapes if before is None else {key: tuple(one.shape) for key, one in before.items()}
    if shapes != known:
        raise RecipeError(
            f"the weighting {name!r} keeps the names and shapes of its state, {known}; got {shapes}"
        )
    return found
