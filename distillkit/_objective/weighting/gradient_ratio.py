"""Weights that keep the norms of the terms' gradients at given parts of one term's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import OptionError, RecipeError, unknown_name
from .protocol import Reads, State, StepStatistics


class GradientRatio:
    """Factors by which the norm of a term's gradient is a given part of another term's.

    ``factor = ratio * norm of the reference's gradient / norm of the term's gradient``, of averages
    over steps (as Adam's, exponential and corrected for their start). The reference, and every term
    that ``ratios`` does not name, keep their own weights. With priors of 1 the weighted gradients
    have the ratios that are asked for; a prior multiplies its term's.

    The adaptive weight of Esser et al. (2021), with a ratio, averages and any number of terms.

    Args:
        terms: the names of the objective's terms.
        ratios: term -> the norm of its gradient, as a part of the reference's; above 0.
        reference: the term that the others are measured by.
        smoothing: in [0, 1), how much of an average each step keeps; 0 takes the last step alone.
        limit: at least 1; factors stay within 1 / limit and limit, whatever the norms.

    Raises:
        RecipeError: no ratio, or a ratio of the reference to itself, or no such term.
        OptionError: an option outside its range.

    Examples:
        >>> weighting = GradientRatio(["task", "mse/logits"], ratios={"mse/logits": 0.5})
        >>> both, ones = torch.arange(2), torch.ones(2).double()
        >>> gramian = torch.diag(torch.tensor([9.0, 1.0])).double()  # norms 3 and 1
        >>> step = StepStatistics(both, ones, ones, ones, gramian)
        >>> weighting.settle(step, weighting.start())[0].tolist()
        [1.0, 1.5]
    """

    reads: ClassVar[Reads] = "gradients"

    def __init__(
        self,
        terms: Sequence[str],
        *,
        ratios: Mapping[str, float],
        reference: str = "task",
        smoothing: float = 0.9,
        limit: float = 1e4,
    ) -> None:
        for name in (reference, *ratios):
            if name not in terms:
                raise RecipeError(str(unknown_name("term of this objective", name, terms)))
        if not ratios or reference in ratios:
            raise RecipeError(
                f"ratios name the terms to hold at a part of {reference!r}, one at least and not "
                f"{reference!r} itself; got {dict(ratios)}"
            )
        for name, ratio in ratios.items():
            if not 0 < ratio < math.inf:
                raise OptionError(f"the ratio of {name!r} is a finite number above 0; got {ratio}")
        if not 0 <= smoothing < 1:
            raise OptionError(f"smoothing is in [0, 1); got {smoothing}")
        if not 1 <= limit < math.inf:
            raise OptionError(f"limit is a finite number, at least 1; got {limit}")
        self._reference = list(terms).index(reference)
        wanted = [ratios.get(name, math.nan) for name in terms]
        self._ratios = torch.tensor(wanted, dtype=torch.float64)
        self._smoothing, self._limit = smoothing, limit

    def start(self) -> State:
        zeros = torch.zeros_like(self._ratios)
        return {"averages": zeros, "left": torch.ones_like(zeros)}

    def settle(self, step: StepStatistics, state: State) -> tuple[Tensor, State]:
        new = {name: value.clone() for name, value in state.items()}
        kept, terms = self._smoothing, step.terms
        new["averages"][terms] = kept * new["averages"][terms] + (1 - kept) * step.norms
        new["left"][terms] *= kept
        if self._reference not in terms:
            return step.factors, new
        norms = new["averages"] / (1 - new["left"]).clamp_min(1e-300)
        wanted = self._ratios[terms] * norms[self._reference] / norms[terms]
        wanted = torch.nan_to_num(wanted, nan=1.0, posinf=self._limit)
        held = torch.isfinite(self._ratios[terms])
        return torch.where(held, wanted.clamp(1 / self._limit, self._limit), step.factors), new
