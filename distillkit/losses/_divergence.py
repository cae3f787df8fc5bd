"""Divergences between two categorical distributions, from their logits."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ._signature import check_positive, check_where, checked_pair

Temperature = Annotated[float, Field(gt=0)]


def kl_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""Forward Kullback-Leibler divergence of softened logits, KL(teacher || student).

    .. math:: T^2 \sum_v p_v (\log p_v - \log q_v), \quad
              p = \mathrm{softmax}(t / T),\; q = \mathrm{softmax}(s / T)

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape; detach it to train the student alone.
        temperature: T > 0, softens both sides.
        where: boolean, broadcastable to the logits: the classes that exist. A row without any
            has value 0.

    Returns:
        One value >= 0 for each row, in float32 at least; exactly 0 for equal logits. A class that
        is -inf on both sides contributes 0; one that is -inf for the student alone, where the
        teacher has mass, makes the value +inf.

    Raises:
        ShapeError: unequal shapes, logits that are not floating point, a ``where`` that does not
            fit.
        OptionError: a temperature that is not positive.

    Examples:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]])
        >>> kl_divergence(student, teacher)
        tensor([0.1308])

    Source: Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, 2015,
    https://arxiv.org/abs/1503.02531, section 2 (the factor T squared: its last paragraph).
    """
    student, teacher = checked_pair("kl_divergence", "(v),(v)->()", student, teacher)
    check_where(where, student)
    check_positive("temperature", temperature)
    log_q = log_softmax(student, where, temperature)
    log_p = log_softmax(teacher, where, temperature)
    return temperature**2 * forward_kl(log_q, log_p)


def log_softmax(scores: Tensor, where: Tensor | None, temperature: float) -> Tensor:
    """Log-probabilities of the kept entries, -inf for the others.

    Shape: ``(v)->(v)``. Entries that are -inf count as dropped; a row without kept entries is
    -inf throughout and has no gradient. What a dropped entry held reaches nothing.
    """
    kept = scores > -torch.inf if where is None else where & (scores > -torch.inf)
    some = kept.any(-1, keepdim=True)
    # all -inf has no softmax: such a row is computed from zeros and dropped afterwards
    filled = torch.where(kept, scores / temperature, torch.where(some, -torch.inf, 0.0))
    return torch.where(kept, filled.log_softmax(-1), -torch.inf)


def forward_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) from log-probabilities.

    An entry without mass in p contributes 0; one that only q lacks makes the value +inf.
    """
    has_mass = log_p > -torch.inf
    lacking = has_mass & (log_q == -torch.inf)
    # a difference of two infinities is NaN, and so is 0 * inf where p underflows: both stay out
    difference = torch.where(has_mass & ~lacking, log_p - log_q, 0)
    return torch.where(lacking.any(-1), torch.inf, (log_p.exp() * difference).sum(-1))
