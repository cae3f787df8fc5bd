"""Arithmetic of an ensemble: several distributions, or several values, become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from .._attention.precision import widen
from ..errors import ShapeError

Weights: TypeAlias = "Sequence[float] | Tensor"
"""One for each teacher, ``(k,)``, or one for each teacher and position, ``(k, *leading)``."""


def mean_values(values: Sequence[Tensor], weights: Weights) -> Tensor:
    """The weighted mean of equal shapes, in float32 at least.

    Args:
        values: one for each teacher.
        weights: one number for each, which add up to 1.

    Examples:
        >>> mean_values([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])], [0.5, 0.5])
        tensor([2., 2.])
    """
    stacked = torch.stack([widen(x) for x in values])
    return (stacked * _per_teacher(weights, stacked)).sum(0)


def mean_probabilities(logits: Sequence[Tensor], weights: Weights, temperature: float) -> Tensor:
    r"""Logits whose softmax at a temperature is the mean of the teachers' at that temperature.

    .. math:: z = T \log \sum_k w_k \, \mathrm{softmax}(z_k / T)

    over the last axis, in float32 at least. Entries of -inf have no probability. A teacher that
    keeps no class of a position says nothing of it; where none does, all are -inf.

    Args:
        logits: one for each teacher, ``(..., v)``.
        weights: one for each teacher, or one for each teacher and position, which add up to 1.
        temperature: > 0, the one at which a loss compares them.

    Examples:
        >>> halves = [torch.tensor([0.9, 0.1]).log(), torch.tensor([0.1, 0.9]).log()]
        >>> mean_probabilities(halves, [0.5, 0.5], 1.0).softmax(-1)
        tensor([0.5000, 0.5000])

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 1, where the
    arithmetic mean of an ensemble's distributions is the soft target.
    """
    logs = torch.stack([_log_softmax(widen(x) / temperature) for x in logits])
    logs = logs + _per_teacher(weights, logs).log()
    peak = logs.detach().amax(0)
    peak = torch.where(peak == -torch.inf, 0, peak)
    total = (logs - peak).exp().sum(0)
    some = total != 0  # NaN of a broken teacher is something, and is seen
    return temperature * torch.where(some, torch.where(some, total, 1).log() + peak, -torch.inf)


def confidence_weights(logits: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
    r"""How much each teacher is believed at each position, ``(k, *leading)``; they add up to 1.

    .. math:: w_k = \frac{1}{K - 1} \left(1 - \frac{\exp L_k}{\sum_j \exp L_j}\right)

    with :math:`L_k` the cross-entropy of teacher k against the label, at temperature 1; without
    labels it is the entropy of its own prediction, which is what it expects that to be.

    Args:
        logits: one for each teacher, ``(*leading, v)``.
        labels: integers ``(*leading)``; a negative one, such as -100, is none, and all teachers
            are believed alike there.

    Raises:
        ShapeError: labels that are no classes of these positions.

    Examples:
        >>> sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> confidence_weights([sure, unsure])[:, 0]
        tensor([0.6664, 0.3336])

    Source: Zhang, Chen and Wang 2022 (CA-MKD), "Confidence-Aware Multi-Teacher Knowledge
    Distillation", the weights of its predictions' loss; the entropy in place of labels is not
    theirs.
    """
    logs = torch.stack([_log_softmax(widen(x)) for x in logits])
    if labels is None:
        # 0 log 0 is 0
        doubt = -torch.where(logs == -torch.inf, 0, logs.exp() * logs).sum(-1)
    else:
        doubt = _cross_entropy(logs, labels.to(logs.device))
    count = len(logs)
    if count == 1:
        return torch.ones_like(doubt)
    # two teachers that exclude the label are equally wrong
    doubt = doubt.clamp(max=torch.finfo(doubt.dtype).max)
    return (1 - doubt.softmax(0)) / (count - 1)


def _cross_entropy(logs: Tensor, labels: Tensor) -> Tensor:
    shape, classes = logs.shape[1:-1], logs.shape[-1]
    if labels.shape != shape or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ShapeError(
            f"labels of an ensemble are integers, one for each position {tuple(shape)}; got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    if labels.device.type == "cpu" and bool((labels >= classes).any()):
        raise ShapeError(
            f"labels of an ensemble are classes below {classes}; got {int(labels.max())}"
        )
    known = labels >= 0
    index = torch.where(known, labels, 0).long().expand(len(logs), *shape)[..., None]
    return torch.where(known, -logs.gather(-1, index)[..., 0], 0)


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the entries that are not -inf; a position of nothing else stays -inf."""
    kept = logits != -torch.inf
    some = kept.any(-1, keepdim=True)
    return torch.where(kept, torch.where(some, logits, 0).log_softmax(-1), -torch.inf)


def _per_teacher(weights: Weights, stacked: Tensor) -> Tensor:
    """Weights with the axes of what they weigh."""
    given = torch.as_tensor(weights, dtype=stacked.dtype, device=stacked.device)
    return given.reshape(*given.shape, *(1,) * (stacked.ndim - given.ndim))
