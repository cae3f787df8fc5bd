"""The one place where a map of losses becomes a number."""

from __future__ import annotations

import torch
from torch import Tensor

from .._attention import widen
from .._transfer import trackable
from ..errors import ShapeError


def masked_mean(
    values: Tensor, mask: Tensor | None = None, *, normalizer: float | Tensor | None = None
) -> Tensor:
    r"""The mean of the kept values.

    .. math:: \frac{\sum_i m_i v_i}{\sum_i m_i}

    where the sum below counts the broadcast mask, or is ``normalizer``.

    Shape: ``values`` any, ``mask`` broadcastable to it -> ``()``.

    Args:
        values: what a loss returned; a dropped value may be anything, NaN too.
        mask: boolean, True = keep; a floating mask holds weights. None keeps everything.
        normalizer: divide by this instead of by the number of kept values: the number in the
            whole batch, so that the parts of a batch (accumulated, or on several devices) add up.

    Returns:
        A scalar; 0 with a zero gradient where nothing is kept.

    Raises:
        ShapeError: the mask does not broadcast to the values.

    Examples:
        >>> values = torch.tensor([[1.0, 2.0], [3.0, torch.nan]])
        >>> masked_mean(values, torch.tensor([[True, True], [True, False]]))
        tensor(2.)
    """
    values = widen(values)
    if isinstance(normalizer, Tensor):
        normalizer = trackable(normalizer)
    if mask is None:
        return values.sum() / (max(1, values.numel()) if normalizer is None else normalizer)
    weights = _spread(mask, values)
    kept = weights if weights.dtype == torch.bool else weights != 0
    total = (torch.where(kept, values, 0) * weights).sum()
    if normalizer is not None:
        return total / normalizer
    count = weights.sum()
    return total / torch.where(count == 0, 1, count)


def _spread(mask: Tensor, values: Tensor) -> Tensor:
    try:
        return trackable(mask).expand(values.shape)
    except RuntimeError:
        raise ShapeError(
            f"mask of shape {tuple(mask.shape)} does not broadcast to values of shape "
            f"{tuple(values.shape)}; a mask of examples needs the trailing axes: mask[:, None]"
        ) from None
