"""Weights by how fast each term falls: dynamic weight average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import OptionError
from .protocol import Reads, State, StepStatistics

_LARGEST_RATIO = 100.0  # exp(100 / temperature) is still a number


class DynamicAverage:
    """Terms that fall slower than the others weigh more (DWA of Liu et al., 2019).

    Over a window of steps each term has a mean value. Its ratio r is that of the last window by
    that of the one before, and the factors of k terms are ``k * softmax(r / temperature)``. A term
    that was not computed in the last two windows has r = 1, as all have at the start; a ratio
    counts as 100 at most, and as 0 at least.

    Args:
        terms: the names of the objective's terms.
        temperature: above 0; the larger, the more equal are the factors. The paper takes 2.
        steps: the steps of a window, at least 1. The paper's window is an epoch, since the ratio of
            two batches is mostly noise.

    Raises:
        OptionError: an option outside its range.

    Examples:
        >>> weighting = DynamicAverage(["task", "mse/logits"], steps=1)
        >>> both, ones, none = torch.arange(2), torch.ones(2), torch.zeros(0, 0)
        >>> state = weighting.start()
        >>> for losses in ([4.0, 1.0], [2.0, 1.0]):  # the first is halved, the second stays
        ...     step = StepStatistics(both, torch.tensor(losses).double(), ones, ones, none)
        ...     factors, state = weighting.settle(step, state)
        >>> [round(factor, 3) for factor in factors.tolist()]
        [0.876, 1.124]
    """

    reads: ClassVar[Reads] = "losses"

    def __init__(self, terms: Sequence[str], *, temperature: float = 2.0, steps: int = 100) -> None:
        if not 0 < temperature < float("inf"):
            raise OptionError(f"temperature is a finite number above 0; got {temperature}")
        if steps != int(steps) or steps < 1:
            raise OptionError(f"steps is a number of steps, 1 or more; got {steps}")
        self._terms, self._temperature, self._steps = len(terms), temperature, steps

    def start(self) -> State:
        def zeros() -> Tensor:
            return torch.zeros(self._terms, dtype=torch.float64)

        names = ("sums", "counts", "last", "before", "windows")
        return {"steps": torch.zeros(1, dtype=torch.float64), **{name: zeros() for name in names}}

    def settle(self, step: StepStatistics, state: State) -> tuple[Tensor, State]:
        new = {name: value.clone() for name, value in state.items()}
        new["sums"][step.terms] += step.losses
        new["counts"][step.terms] += 1
        new["steps"] += 1
        if new["steps"] < self._steps:
            return step.factors, new
        computed = new["counts"] > 0
        means = new["sums"] / new["counts"].clamp_min(1)
        new["before"] = torch.where(computed, new["last"], new["before"])
        new["last"] = torch.where(computed, means, new["last"])
        new["windows"] = torch.where(computed, new["windows"] + 1, 0)
        for name in ("steps", "sums", "counts"):
            new[name] = torch.zeros_like(new[name])
        known = (new["windows"] >= 2) & (new["before"] != 0)
        ratios = torch.where(known, new["last"] / torch.where(known, new["before"], 1), 1)
        ratios = ratios.clamp(0, _LARGEST_RATIO)[step.terms]
        return len(ratios) * torch.softmax(ratios / self._temperature, 0), new
