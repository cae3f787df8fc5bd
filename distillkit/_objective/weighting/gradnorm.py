"""Weights by which the terms' gradients have norms that follow their training rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import OptionError
from .protocol import Reads, State, StepStatistics

_SMALLEST = 1e-3  # of a factor, whose mean is 1
_SMALLEST_RATE = 1e-8


class GradNorm:
    """Factors by which the terms learn at similar rates (Chen et al., 2018, algorithm 1).

    The norm of a term is G = factor x the norm of its gradient. A term whose value has fallen less
    than the others, by the inverse training rate r (its value by its first value, divided by the
    mean of those), is to have the norm ``mean(G) * r ** alpha``. Each step moves every factor by
    ``lr`` times the gradient of ``|G - target|``, with the target taken as a constant, and makes
    their mean 1 again. Different from the paper: the distance is divided by mean(G), so that the
    scale of the losses does not change what ``lr`` means, and no factor falls below 0.001.

    Args:
        terms: the names of the objective's terms.
        alpha: at least 0; the larger, the more a term that lags behind is pulled. 0: equal norms.
        lr: above 0, the size of a factor's step.

    Raises:
        OptionError: an option outside its range.

    Examples:
        >>> weighting = GradNorm(["task", "mse/logits"], alpha=0.0, lr=0.1)
        >>> both, ones = torch.arange(2), torch.ones(2).double()
        >>> gramian = torch.diag(torch.tensor([9.0, 1.0])).double()  # norms 3 and 1
        >>> step = StepStatistics(both, ones, ones, ones, gramian)
        >>> factors, _ = weighting.settle(step, weighting.start())
        >>> [round(factor, 3) for factor in factors.tolist()]
        [0.895, 1.105]
    """

    reads: ClassVar[Reads] = "gradients"

    def __init__(self, terms: Sequence[str], *, alpha: float = 1.5, lr: float = 0.025) -> None:
        if not 0 <= alpha < math.inf:
            raise OptionError(f"alpha is a finite number, at least 0; got {alpha}")
        if not 0 < lr < math.inf:
            raise OptionError(f"lr is a finite number above 0; got {lr}")
        self._terms, self._alpha, self._lr = len(terms), alpha, lr

    def start(self) -> State:
        zeros = torch.zeros(self._terms, dtype=torch.float64)
        return {"first": zeros, "seen": zeros.clone()}

    def settle(self, step: StepStatistics, state: State) -> tuple[Tensor, State]:
        new = {name: value.clone() for name, value in state.items()}
        terms, norms = step.terms, step.norms
        fresh = new["seen"][terms] == 0
        new["first"][terms] = torch.where(fresh, step.losses, new["first"][terms])
        new["seen"][terms] = 1
        first = new["first"][terms]
        fallen = torch.where(first != 0, step.losses / torch.where(first != 0, first, 1), 1)
        fallen = fallen.clamp_min(_SMALLEST_RATE)
        weighted = step.factors * norms
        mean = weighted.mean()
        if not mean > 0:
            return step.factors, new
        target = mean * (fallen / fallen.mean()) ** self._alpha
        slope = torch.sign(weighted - target) * norms / mean
        factors = (step.factors - self._lr * slope).clamp_min(_SMALLEST)
        return len(factors) * factors / factors.sum(), new
