"""Weights by homoscedastic uncertainty: one learned log variance for each term."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Uncertainty(nn.Module):
    """Factors exp(-s) with a learned log variance s for each term (Kendall et al., 2018).

    The loss is the sum over terms of ``prior * (exp(-s) * value + s)``: twice equation 7 of the
    paper with s = log sigma^2, so that every factor starts at 1. At the optimum of s, a term's
    factor is 1 / value: the term adds one nat per e-fold of its value, whatever its scale. A prior
    multiplies the whole of a term's share, since one within it would be learned away.

    The log variances are one parameter ``(terms,)``, which the student's optimizer has to step;
    give it no weight decay, which would pull every factor towards 1.

    Args:
        terms: the names of the objective's terms.

    Examples:
        >>> weighting = Uncertainty(["task", "mse/logits"])
        >>> with torch.no_grad():
        ...     _ = weighting.log_variances.copy_(torch.tensor([0.0, 0.6931]))
        >>> factors, additions = weighting(torch.tensor([0, 1]))
        >>> factors.tolist(), additions.tolist()
        ([1.0, 0.500...], [0.0, 0.693...])
    """

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(len(terms)))

    def forward(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        chosen = self.log_variances[terms]
        if chosen.dtype.itemsize < 4:
            chosen = chosen.float()
        return torch.exp(-chosen), chosen
