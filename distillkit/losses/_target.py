"""Losses on logits that treat the labelled class and the others apart."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..errors import ShapeError
from ._divergence import Temperature, check_classes, cross_entropy, forward_kl, log_softmax
from ._signature import check_not_negative, check_positive, checked_pair, checked_where

__all__ = ["decoupled_kl_divergence", "nkd"]

Weight = Annotated[float, Field(ge=0)]


def decoupled_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    alpha: Weight = 1.0,
    beta: Weight = 8.0,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""Forward KL split into target against rest, and the rest among themselves (DKD).

    .. math:: T^2 [\alpha\, KL(b^t \| b^s) + \beta\, KL(\hat p \| \hat q)]

    with b the pair (target, everything else) and hats the non-target classes renormalised.
    Equal to ``kl_divergence`` where beta is alpha times the teacher's non-target mass.

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape.
        labels: integer ``(...)``: the target class of each row.
        alpha: weight of the first part, >= 0.
        beta: weight of the second, >= 0; it vanishes for two classes.
        temperature: T > 0, softens both sides.
        where: boolean, the classes that exist.

    Returns:
        One value >= 0 for each row, exactly 0 for equal logits; NaN, without gradient, where the
        label is no class, as -100 is: leave those rows out with the mean's mask.

    Raises:
        ShapeError: shapes that do not fit, one class, labels that are not integers.
        OptionError: a temperature that is not positive, a negative weight.

    Examples:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]])
        >>> decoupled_kl_divergence(student, teacher, labels=torch.tensor([1]))
        tensor([0.1308])

    Source: Zhao et al., *Decoupled Knowledge Distillation*, 2022,
    https://arxiv.org/abs/2203.08679, equation 7.
    """
    student, teacher = checked_pair("decoupled_kl_divergence", "(v),(v)->()", student, teacher)
    check_classes("decoupled_kl_divergence", student, teacher)
    where = checked_where(where, student)
    target = _target(labels, student)
    check_positive("temperature", temperature)
    check_not_negative("alpha", alpha)
    check_not_negative("beta", beta)
    binary, others = [], []
    for logits in (student, teacher):
        log_p = log_softmax(logits, where, temperature)
        binary.append(torch.stack([_sum(log_p, target), _sum(log_p, ~target)], -1))
        others.append(log_softmax(logits, _both(~target, where), temperature))
    value = temperature**2 * (alpha * forward_kl(*binary) + beta * forward_kl(*others))
    return torch.where(target.any(-1), value, torch.nan)


def nkd(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    gamma: Weight = 1.5,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""Normalised knowledge distillation: the teacher weighs the label, and shapes the rest.

    .. math:: -p_y \log q_y - \gamma T^2 \sum_{i \ne y} \hat p_i \log \hat q_i

    with p, q at temperature 1 in the first part, and hats the non-target classes renormalised at
    temperature T.

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape.
        labels: integer ``(...)``: the target class of each row.
        gamma: weight of the second part, >= 0.
        temperature: T > 0, of the second part alone.
        where: boolean, the classes that exist.

    Returns:
        One value >= 0 for each row; a cross-entropy, not 0 for equal logits. NaN, without
        gradient, where the label is no class, as -100 is: leave those rows out with the mean's
        mask.

    Raises:
        ShapeError: shapes that do not fit, one class, labels that are not integers.
        OptionError: a temperature that is not positive, a negative weight.

    Examples:
        >>> nkd(torch.zeros(1, 3), torch.zeros(1, 3), labels=torch.tensor([0]), gamma=1.0)
        tensor([1.0594])

    Source: Yang et al., *From Knowledge Distillation to Self-Knowledge Distillation*, 2023,
    https://arxiv.org/abs/2303.13005, "Normalized KD".
    """
    student, teacher = checked_pair("nkd", "(v),(v)->()", student, teacher)
    check_classes("nkd", student, teacher)
    where = checked_where(where, student)
    target = _target(labels, student)
    check_positive("temperature", temperature)
    check_not_negative("gamma", gamma)
    log_q, log_p = (_sum(log_softmax(x, where, 1.0), target) for x in (student, teacher))
    of_label = cross_entropy(log_q[..., None], log_p[..., None])
    rest = _both(~target, where)
    others = cross_entropy(*(log_softmax(x, rest, temperature) for x in (student, teacher)))
    value = of_label + gamma * temperature**2 * others
    return torch.where(target.any(-1), value, torch.nan)


def _target(labels: Tensor, logits: Tensor) -> Tensor:
    """Which entry is the label, boolean of the logits' shape."""
    if (
        labels.shape != logits.shape[:-1]
        or labels.is_floating_point()
        or labels.dtype == torch.bool
    ):
        raise ShapeError(
            f"labels are integers of shape {tuple(logits.shape[:-1])}, one class for each row; got "
            f"{tuple(labels.shape)} {labels.dtype}"
        )
    classes = torch.arange(logits.shape[-1], device=logits.device)
    return classes == labels[..., None]


def _sum(log_p: Tensor, where: Tensor) -> Tensor:
    """The logarithm of the kept entries' sum; -inf where none has mass."""
    kept = where & (log_p != -torch.inf)
    some = kept.any(-1)
    filled = torch.where(kept, log_p, torch.where(some[..., None], -torch.inf, 0.0))
    return torch.where(some, filled.logsumexp(-1), -torch.inf)


def _both(rest: Tensor, where: Tensor | None) -> Tensor:
    return rest if where is None else rest & where
