"""Divergences to a teacher of which only the k most probable classes were stored."""

from __future__ import annotations

import torch
from torch import Tensor

from .._attention import widen
from .._transfer import trackable
from ..errors import ShapeError
from ._divergence import (
    Beta,
    Temperature,
    check_beta,
    check_classes,
    forward_kl,
    log_softmax,
    mixture_divergence,
)
from ._signature import check_positive

__all__ = ["top_k_jensen_shannon_divergence", "top_k_kl_divergence"]


def top_k_kl_divergence(
    student_logits: Tensor,
    teacher_log_probabilities: Tensor,
    indices: Tensor,
    *,
    temperature: Temperature = 1.0,
) -> Tensor:
    r"""Forward KL over the k stored classes and one bucket for all others.

    .. math:: T^2\, KL(\tilde p \| \tilde q), \quad
              \tilde p = \mathrm{softmax}(\log [p_1 \dots p_k, 1 - \textstyle\sum p_i] / T)

    and the same of the student. Softening k + 1 buckets is exact at T = 1 and at k = v, and never
    takes the rest for one class that the student should predict.

    Shape: ``(v),(k),(k)->()``.

    Args:
        student_logits: over all v classes.
        teacher_log_probabilities: log-probabilities at temperature 1 of the stored classes.
        indices: integer, which classes they are; different in each row.
        temperature: T > 0.

    Returns:
        One value >= 0 for each row; the value of ``kl_divergence`` at k = v.

    Raises:
        ShapeError: shapes that do not fit, one class, more stored classes than there are.
        OptionError: a temperature that is not positive.

    Examples:
        >>> teacher = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> top_k_kl_divergence(torch.zeros(1, 3), teacher[:, :1], torch.tensor([[0]]))
        tensor([0.0589])

    Source: Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531, section 2, with all
    classes stored; the bucket for the rest is distillkit's.
    """
    buckets = _buckets(student_logits, teacher_log_probabilities, indices, temperature)
    return temperature**2 * forward_kl(*buckets)


def top_k_jensen_shannon_divergence(
    student_logits: Tensor,
    teacher_log_probabilities: Tensor,
    indices: Tensor,
    *,
    beta: Beta = 0.5,
    temperature: Temperature = 1.0,
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence over the k stored classes and a bucket for the rest.

    .. math:: T^2 [\beta\, KL(\tilde p \| m) + (1 - \beta)\, KL(\tilde q \| m)], \quad
              m = \beta \tilde p + (1 - \beta) \tilde q

    over the buckets of :func:`top_k_kl_divergence`.

    Shape: ``(v),(k),(k)->()``.

    Args:
        student_logits: over all v classes.
        teacher_log_probabilities: log-probabilities at temperature 1 of the stored classes.
        indices: integer, which classes they are; different in each row.
        beta: the teacher's weight in the mixture, in (0, 1).
        temperature: T > 0.

    Returns:
        One value >= 0 for each row, finite always; the value of ``jensen_shannon_divergence`` at
        k = v.

    Raises:
        ShapeError: shapes that do not fit, one class, more stored classes than there are.
        OptionError: a temperature that is not positive, a beta outside (0, 1).

    Examples:
        >>> teacher = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> top_k_jensen_shannon_divergence(torch.zeros(1, 3), teacher[:, :1], torch.tensor([[0]]))
        tensor([0.0144])

    Source: Agarwal et al. 2024 (GKD), https://arxiv.org/abs/2306.13649, equation 1.
    """
    check_beta(beta)
    buckets = _buckets(student_logits, teacher_log_probabilities, indices, temperature)
    return temperature**2 * mixture_divergence(*buckets, beta)


def _buckets(
    student: Tensor, teacher: Tensor, indices: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Softened log-probabilities of the stored classes and of the rest, of both sides."""
    check_positive("temperature", temperature)
    stored, classes = teacher.shape[-1:], student.shape[-1:]
    fits = teacher.shape == indices.shape and teacher.shape[:-1] == student.shape[:-1]
    whole = indices.dtype not in (torch.int32, torch.int64)
    if not fits or whole or not (1,) <= stored <= classes or not student.is_floating_point():
        raise ShapeError(
            "top-k divergences take student_logits (..., v), teacher_log_probabilities (..., k), "
            f"integer indices (..., k), 1 <= k <= v; got {tuple(student.shape)} {student.dtype}, "
            f"{tuple(teacher.shape)} {teacher.dtype}, {tuple(indices.shape)} {indices.dtype}"
        )
    check_classes("top-k divergences", student)
    indices = trackable(indices.long())
    log_q, log_p = log_softmax(widen(student), None, 1.0), widen(teacher)
    of_stored = log_q.gather(-1, indices)
    if stored < classes:
        others = torch.ones_like(log_q, dtype=torch.bool).scatter(-1, indices, 0)
        log_q = torch.cat([of_stored, log_sum(torch.where(others, log_q, -torch.inf))], -1)
        log_p = torch.cat([log_p, _log_rest(log_p)], -1)
    else:
        log_q = of_stored
    return log_softmax(log_q, None, temperature), log_softmax(log_p, None, temperature)


def log_sum(log_p: Tensor) -> Tensor:
    """``(..., 1)``; -inf, without gradient, where nothing has mass."""
    some = (log_p != -torch.inf).any(-1, keepdim=True)
    return torch.where(some, torch.where(some, log_p, 0).logsumexp(-1, keepdim=True), -torch.inf)


def _log_rest(log_p: Tensor) -> Tensor:
    """log(1 - sum p), ``(..., 1)``; -inf where rounding leaves nothing."""
    total = log_sum(log_p)
    left = total < 0
    return torch.where(left, torch.log(-torch.expm1(torch.where(left, total, -1.0))), -torch.inf)
