"""A weighting as anybody may write it: by what a step showed, or by what an optimizer learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

State = Mapping[str, Tensor]
"""Name -> float64 tensor: what a weighting remembers from step to step."""

Reads = Literal["losses", "gradients"]


class StepStatistics(NamedTuple):
    """What one optimizer step showed of the k terms that were computed in it.

    All micro-batches and all ranks of the step are in it. Every tensor is on the CPU, and all but
    ``terms`` are float64.

    Attributes:
        terms: ``(k,)``, which terms, as places in the list that the factory was given.
        losses: ``(k,)``, their unweighted values.
        priors: ``(k,)``, the terms' own weights, above 0.
        factors: ``(k,)``, the factors that they had.
        gramian: ``(k, k)``, inner products of the gradients of the unweighted terms; ``(0, 0)`` for
            a weighting that reads losses alone.
    """

    terms: Tensor
    losses: Tensor
    priors: Tensor
    factors: Tensor
    gramian: Tensor

    @property
    def norms(self) -> Tensor:
        """``(k,)``, the norms of the terms' gradients."""
        return self.gramian.diagonal().clamp_min(0).sqrt()


class SettledWeighting(Protocol):
    """A weighting that settles once for each optimizer step, by what a step showed.

    Attributes:
        reads: ``"losses"``, or ``"gradients"``, which costs a backward for each term.
    """

    @property
    def reads(self) -> Reads: ...

    def start(self) -> State:
        """The state before the first step; names, shapes and number of tensors stay as they are."""
        ...

    def settle(self, step: StepStatistics, state: State) -> tuple[Tensor, State]:
        """The factors ``(k,)`` of the step's terms from now on, and the state after it.

        A pure function: what it is given is not changed, and equal arguments give equal results.
        """
        ...


class LearnedWeighting(Protocol):
    """An ``nn.Module`` whose factors an optimizer learns with the student."""

    def __call__(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """The factors ``(k,)`` of the terms, and what each of them adds to the loss, ``(k,)``.

        Both carry gradient. The loss is the sum of prior x (factor x value + addition).
        """
        ...
