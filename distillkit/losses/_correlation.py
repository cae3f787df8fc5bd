"""Losses that compare the pattern of predictions: Pearson's correlation and standard scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._attention import widen
from ..errors import ShapeError
from ._divergence import Temperature, check_classes, log_softmax
from ._feature import unit
from ._signature import check_positive, checked_pair, checked_where

__all__ = ["intra_class_pearson_distance", "pearson_distance", "standardize_logits"]


def pearson_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    r"""One minus the correlation of two rows of softened probabilities (DIST, inter-class).

    .. math:: T^2 (1 - \rho(p, q))

    Shape: ``(v),(v)->()``.

    Args:
        student: logits.
        teacher: logits of the same shape.
        temperature: T > 0, softens both sides.
        where: boolean, the classes that exist.

    Returns:
        One value in [0, 2 T^2] for each row. A constant row correlates with nothing: the value is
        T^2 and the gradient 0.

    Raises:
        ShapeError: shapes that do not fit, one class.
        OptionError: a temperature that is not positive.

    Examples:
        >>> pearson_distance(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2.0, 1.0, 0.0]]))
        tensor([1.8671])

    Source: Huang et al., *Knowledge Distillation from A Stronger Teacher* (DIST), 2022,
    https://arxiv.org/abs/2205.10536, "inter-class relation".
    """
    student, teacher = checked_pair("pearson_distance", "(v),(v)->()", student, teacher)
    check_classes("pearson_distance", student, teacher)
    where = checked_where(where, student)
    check_positive("temperature", temperature)
    q, p = (log_softmax(x, where, temperature).exp() for x in (student, teacher))
    return temperature**2 * _distance(q, p, where)


def intra_class_pearson_distance(
    student: Tensor, teacher: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    r"""One minus the correlation of a class's probabilities over the batch (DIST, intra-class).

    .. math:: T^2 (1 - \rho(p_{\cdot v}, q_{\cdot v}))

    Shape: ``(n,v),(n,v)->(v)``.

    Args:
        student: logits.
        teacher: logits of the same shape.
        temperature: T > 0, softens both sides.

    Returns:
        One value in [0, 2 T^2] for each class; 0 for a batch of one, which has no pattern.

    Raises:
        ShapeError: shapes that do not fit, one class.
        OptionError: a temperature that is not positive.

    Examples:
        >>> intra_class_pearson_distance(torch.eye(2), torch.eye(2).flip(0))
        tensor([2., 2.])

    Source: Huang et al. 2022 (DIST), https://arxiv.org/abs/2205.10536, "intra-class relation".
    """
    name, signature = "intra_class_pearson_distance", "(n,v),(n,v)->(v)"
    student, teacher = checked_pair(name, signature, student, teacher)
    check_classes(name, student, teacher)
    check_positive("temperature", temperature)
    q, p = (log_softmax(x, None, temperature).exp().mT for x in (student, teacher))
    if student.shape[-2] == 1:
        return 0 * (p + q).sum(-1)
    return temperature**2 * _distance(q, p, None)


def standardize_logits(logits: Tensor) -> Tensor:
    r"""Each row with mean 0 and standard deviation 1, before a divergence softens it.

    .. math:: (x - \bar x) / \mathrm{std}(x), \quad \mathrm{std} \text{ with } n - 1

    Shape: ``(v)->(v)``. A transform, not a loss.

    Args:
        logits: finite floating point values.

    Returns:
        The standard scores, in float32 at least; a constant row gives 0 with gradient 0.

    Raises:
        ShapeError: logits without a class axis, or not floating point.

    Examples:
        >>> standardize_logits(torch.tensor([[1.0, 2.0, 3.0]])).round(decimals=3)
        tensor([[-1.,  0.,  1.]])

    Source: Sun et al., *Logit Standardization in Knowledge Distillation*, 2024,
    https://arxiv.org/abs/2403.01427 (n - 1 as in the authors' code).
    """
    if logits.ndim == 0 or not logits.is_floating_point():
        raise ShapeError(
            f"standardize_logits takes floating point (..., v); got {tuple(logits.shape)} "
            f"{logits.dtype}"
        )
    deviations = unit(_centered(widen(logits), None))
    return deviations * math.sqrt(max(logits.shape[-1] - 1, 0))


def _distance(q: Tensor, p: Tensor, where: Tensor | None) -> Tensor:
    correlation = (unit(_centered(q, where)) * unit(_centered(p, where))).sum(-1)
    return (1 - correlation).clamp(0, 2)


def _centered(x: Tensor, where: Tensor | None) -> Tensor:
    """Minus the mean of the kept entries; exactly 0 for a row that is constant but for rounding."""
    kept = torch.ones_like(x, dtype=torch.bool) if where is None else where.expand(x.shape)
    count = kept.sum(-1, keepdim=True).clamp_min(1)
    centered = torch.where(kept, x - torch.where(kept, x, 0).sum(-1, keepdim=True) / count, 0)
    if not x.shape[-1]:
        return centered
    size = torch.where(kept, x, 0).detach().abs().amax(-1, keepdim=True)
    rounding = 4 * torch.finfo(x.dtype).eps * size
    varies = ~(centered.detach().abs().amax(-1, keepdim=True) <= rounding)  # NaN varies
    return torch.where(varies, centered, 0)
