"""Losses between two vectors, position by position."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ._signature import check_positive, checked_pair, refuse_learned

__all__ = ["attention_transfer", "cosine_distance", "mse", "normalized_mse", "smooth_l1"]


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
    # keeps both vectors, which exist anyway, and not their difference besides
    return F.mse_loss(student, teacher, reduction="none").mean(-1)


def smooth_l1(
    student: Tensor, teacher: Tensor, *, beta: Annotated[float, Field(gt=0)] = 1.0
) -> Tensor:
    r"""Mean over the width of a difference that is squared near 0 and absolute beyond.

    .. math:: \frac{1}{d} \sum_i h(s_i - t_i), \quad
              h(x) = x^2 / 2\beta \text{ if } |x| < \beta \text{ else } |x| - \beta / 2

    Shape: ``(d),(d)->()``.

    Args:
        student: vectors.
        teacher: vectors of the same shape.
        beta: where the square ends, > 0.

    Returns:
        One value >= 0 for each position; exactly 0 for equal vectors.

    Raises:
        ShapeError: unequal shapes, or vectors that are not floating point.
        OptionError: a beta that is not positive.

    Examples:
        >>> smooth_l1(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([0.7500])

    Source: Girshick, *Fast R-CNN*, 2015, https://arxiv.org/abs/1504.08083, equation 3.
    """
    check_positive("beta", beta)
    refuse_learned("smooth_l1", beta=beta)
    student, teacher = checked_pair("smooth_l1", "(d),(d)->()", student, teacher)
    return F.smooth_l1_loss(student, teacher, reduction="none", beta=beta).mean(-1)


def normalized_mse(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference of the two vectors brought to length 1.

    .. math:: \frac{1}{d} \sum_i \left(\frac{s_i}{\|s\|} - \frac{t_i}{\|t\|}\right)^2

    Shape: ``(d),(d)->()``.

    Args:
        student: vectors.
        teacher: vectors of the same shape.

    Returns:
        One value in [0, 4 / d] for each position; exactly 0 for equal vectors. Of a zero vector
        only the other side remains.

    Raises:
        ShapeError: unequal shapes, or vectors that are not floating point.

    Examples:
        >>> normalized_mse(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 5.0]]))
        tensor([1.])

    Source: Yang et al., *CLIP-KD*, 2024, https://arxiv.org/abs/2307.12732, "Feature
    Distillation" (there of both embeddings).
    """
    student, teacher = checked_pair("normalized_mse", "(d),(d)->()", student, teacher)
    return (unit(student) - unit(teacher)).square().mean(-1)


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
    # lengths are divided out of the products, so that no vector of length 1 is kept besides
    (one, one_nonzero), (other, other_nonzero) = representable(student), representable(teacher)
    nonzero = (one_nonzero & other_nonzero)[..., 0]
    squares = one.square().sum(-1) * other.square().sum(-1)
    cosine = (one * other).sum(-1) * torch.where(nonzero, squares, 1).rsqrt()
    return (1 - torch.where(nonzero, cosine, 0)).clamp(0, 2)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared difference of two feature maps' spatial attention.

    .. math:: \sum_{hw} \left(\frac{Q_s}{\|Q_s\|} - \frac{Q_t}{\|Q_t\|}\right)^2, \quad
              Q = \sum_c F_c^2

    Shape: ``(c,h,w),(d,h,w)->()``: channels may differ in number.

    Args:
        student: feature maps.
        teacher: feature maps over the same positions.

    Returns:
        One value in [0, 2] for each map; exactly 0 for equal maps.

    Raises:
        ShapeError: unequal positions, or maps that are not floating point.

    Examples:
        >>> attention_transfer(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]]))
        tensor([2.])

    Source: Zagoruyko and Komodakis, *Paying More Attention to Attention*, 2017,
    https://arxiv.org/abs/1612.03928, equation 2 (there the norm, in the authors' code its square).
    """
    student, teacher = checked_pair("attention_transfer", "(c,h,w),(d,h,w)->()", student, teacher)
    maps = (_scaled(x).square().sum(-3).flatten(-2) for x in (student, teacher))
    one, other = (unit(attention) for attention in maps)
    return (one - other).square().sum(-1)


def _scaled(x: Tensor) -> Tensor:
    """A map divided by its largest entry, which changes no direction: its squares stay finite."""
    peak = x.detach().abs().flatten(-3).amax(-1) if x.flatten(-3).shape[-1] else x.sum((-1, -2, -3))
    return x / torch.where(peak != 0, peak, 1)[..., None, None, None]


def unit(x: Tensor) -> Tensor:
    """Length 1, or zero for a zero vector: value and gradient finite at every scale."""
    scaled, nonzero = representable(x)
    squares = scaled.square().sum(-1, keepdim=True)
    return torch.where(nonzero, scaled * torch.where(nonzero, squares, 1).rsqrt(), 0)


def representable(x: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors divided by their largest entry, which changes no direction, and which are not 0."""
    peak = x.detach().abs().amax(-1, keepdim=True) if x.shape[-1] else x.sum(-1, keepdim=True)
    nonzero = peak != 0  # NaN too
    return x / torch.where(nonzero, peak, 1), nonzero
