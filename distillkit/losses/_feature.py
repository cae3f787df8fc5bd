"""Losses between two vectors, position by position."""

from __future__ import annotations

import torch
from torch import Tensor

from ._signature import checked_pair


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference over the width.

    .. math:: \frac{1}{d} \sum_i (s_i - t_i)^2

    Shape: ``(d),(d)->()``.

    Args:
        student: vectors.
        teacher: vectors of the same shape; the aligner ``projector`` maps unequal widths.

    Returns:
        One value >= 0 for each position, in float32 at least; exactly 0 for equal vectors.

    Raises:
        ShapeError: unequal shapes, or vectors that are not floating point.

    Examples:
        >>> mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([2.])

    Source: Romero et al., *FitNets*, 2015, https://arxiv.org/abs/1412.6550, equation 3 (there the
    half of the sum).
    """
    student, teacher = checked_pair("mse", "(d),(d)->()", student, teacher)
    return (student - teacher).square().mean(-1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""One minus the cosine of the angle between two vectors.

    .. math:: 1 - \frac{\langle s, t \rangle}{\|s\| \|t\|}

    Shape: ``(d),(d)->()``.

    Args:
        student: vectors.
        teacher: vectors of the same shape; the aligner ``projector`` maps unequal widths.

    Returns:
        One value in [0, 2] for each position, in float32 at least; at most 8 eps for equal
        vectors. A zero vector is at distance 1 from everything, with a zero gradient.

    Raises:
        ShapeError: unequal shapes, or vectors that are not floating point.

    Examples:
        >>> cosine_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([1.])

    Source: Sanh et al., *DistilBERT*, 2019, https://arxiv.org/abs/1910.01108, section 2.
    """
    student, teacher = checked_pair("cosine_distance", "(d),(d)->()", student, teacher)
    cosine = (_unit(student) * _unit(teacher)).sum(-1)
    return (1 - cosine).clamp(0, 2)


def _unit(x: Tensor) -> Tensor:
    """Length 1, or zero for a zero vector: value and gradient finite at every scale."""
    # a factor changes no direction: dividing by the largest entry keeps squares representable
    peak = x.detach().abs().amax(-1, keepdim=True) if x.shape[-1] else x.sum(-1, keepdim=True)
    nonzero = peak > 0
    scaled = x / torch.where(nonzero, peak, 1)
    squares = scaled.square().sum(-1, keepdim=True)
    return torch.where(nonzero, scaled * torch.where(nonzero, squares, 1).rsqrt(), 0)
