"""KL over as many classes as hold a share of the mass, and one bucket for all others."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import OptionError
from ._divergence import Temperature, check_classes, forward_kl, log_softmax
from ._signature import check_positive, checked_pair, checked_where, refuse_learned
from ._top_k import log_sum

__all__ = ["dynamic_top_k_kl_divergence", "dynamic_top_k_reverse_kl_divergence"]

Mass = Annotated[float, Field(gt=0, le=1)]
Selecting = Literal["teacher", "student"]


def dynamic_top_k_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    mass: Mass = 0.9,
    select: Selecting = "teacher",
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""Forward KL over the classes that hold most of the mass and one bucket for all others.

    .. math:: T^2\, KL(\tilde p \| \tilde q), \quad
              \tilde p = [p_i : i \in K,\; 1 - \textstyle\sum_K p_i], \quad
              p = \mathrm{softmax}(t / T)

    and the same of the student. K is chosen for each position: the fewest most probable classes
    that have at least ``mass`` together, and what ties with the last of them. A certain teacher
    keeps one class, an uncertain one many.

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape.
        mass: in (0, 1]; 1 keeps every class, and gives the value of :func:`kl_divergence`.
        select: whose distribution chooses K. The choice itself has no gradient.
        temperature: T > 0, softens both sides, before K is chosen.
        where: boolean, broadcastable to the logits: the classes that exist. A row without any
            has value 0.

    Returns:
        One value >= 0 for each row; exactly 0 for equal logits. Never more than
        :func:`kl_divergence`, up to rounding.

    Raises:
        ShapeError: unequal shapes, logits that are not floating point or of one class, a ``where``
            that does not fit.
        OptionError: a temperature that is not positive, a ``mass`` outside (0, 1], an unknown
            ``select``.

    Examples:
        >>> teacher = torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> dynamic_top_k_kl_divergence(torch.zeros(1, 3), teacher, mass=0.5)
        tensor([0.1483])

    Source: after Sun et al., *Switch-KD*, 2026, https://arxiv.org/abs/2604.14629, "Dynamic
    Bi-directional Logits Difference", which chooses k for each position, too. Its differences
    between pairs of logits and its rule for k are not reproduced; mass and bucket are distillkit's.
    """
    log_q, log_p = _buckets(
        "dynamic_top_k_kl_divergence", student, teacher, mass, select, temperature, where
    )
    return temperature**2 * forward_kl(log_q, log_p)


def dynamic_top_k_reverse_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    mass: Mass = 0.9,
    select: Selecting = "teacher",
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""Reverse KL over the classes that hold most of the mass and one bucket for all others.

    .. math:: T^2\, KL(\tilde q \| \tilde p)

    over the buckets of :func:`dynamic_top_k_kl_divergence`.

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape.
        mass: in (0, 1]; 1 keeps every class, and gives :func:`reverse_kl_divergence`.
        select: whose distribution chooses the classes.
        temperature: T > 0, softens both sides, before K is chosen.
        where: boolean, broadcastable to the logits: the classes that exist. A row without any
            has value 0.

    Returns:
        One value >= 0 for each row, exactly 0 for equal logits; +inf where the student has mass in
        a bucket that is -inf for the teacher.

    Raises:
        ShapeError: unequal shapes, logits that are not floating point or of one class, a ``where``
            that does not fit.
        OptionError: a temperature that is not positive, a ``mass`` outside (0, 1], an unknown
            ``select``.

    Examples:
        >>> teacher = torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> dynamic_top_k_reverse_kl_divergence(torch.zeros(1, 3), teacher, mass=0.5)
        tensor([0.1446])

    Source: after Sun et al., *Switch-KD*, 2026, https://arxiv.org/abs/2604.14629, "Dynamic
    Bi-directional Logits Difference"; :func:`dynamic_top_k_kl_divergence` says what is not
    reproduced.
    """
    log_q, log_p = _buckets(
        "dynamic_top_k_reverse_kl_divergence", student, teacher, mass, select, temperature, where
    )
    return temperature**2 * forward_kl(log_p, log_q)


def _buckets(
    name: str,
    student: Tensor,
    teacher: Tensor,
    mass: float,
    select: str,
    temperature: float,
    where: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``(..., v + 1)``: -inf for a class in the bucket, which is last."""
    student, teacher = checked_pair(name, "(v),(v)->()", student, teacher)
    check_classes(name, student, teacher)
    where = checked_where(where, student)
    check_positive("temperature", temperature)
    if select not in ("teacher", "student"):
        raise OptionError(f'{name}: select is "teacher" or "student"; got {select!r}')
    refuse_learned(name, mass=mass)
    if not 0 < mass <= 1:
        raise OptionError(f"{name}: mass lies above 0 and is at most 1; got {mass}")
    log_q, log_p = (log_softmax(x, where, temperature) for x in (student, teacher))
    if mass == 1:  # rounding would leave classes out
        return log_q, log_p
    chosen = _most_probable((log_p if select == "teacher" else log_q).detach(), mass)
    return _with_bucket(log_q, chosen), _with_bucket(log_p, chosen)


def _most_probable(log_p: Tensor, mass: float) -> Tensor:
    """The fewest most probable classes that hold the mass, and what ties with the last of them."""
    ordered = log_p.sort(-1, descending=True).values
    p = ordered.exp()
    before = p.cumsum(-1) - p
    k = (before < mass).sum(-1, keepdim=True).clamp_min(1)
    return log_p >= ordered.gather(-1, k - 1)


def _with_bucket(log_p: Tensor, chosen: Tensor) -> Tensor:
    rest = log_sum(torch.where(chosen, -torch.inf, log_p))
    return torch.cat([torch.where(chosen, log_p, -torch.inf), rest], -1)
