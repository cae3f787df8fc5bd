"""What counts of a loss's values, and the mean of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .._attention import Attention
from ..errors import ShapeError
from ..losses import masked_mean, shared_rows

Per = Literal["example", "row"]


def counted_entries(
    values: Tensor, student: Any, teacher: Any, masks: Sequence[Tensor]
) -> Tensor | None:
    """The mask of the values' mean."""
    if isinstance(teacher, Attention):
        rows = shared_rows(student, teacher)
        if rows.shape[1] != values.shape[1]:  # heads="mean" leaves one head
            rows = rows.all(1, keepdim=True)
        return rows.expand(values.shape)
    kept: Tensor | None = None
    for mask in masks:
        kept = mask if kept is None else kept & mask
    if kept is not None and kept.shape != values.shape[: kept.ndim]:
        raise ShapeError(
            f"a mask of shape {tuple(kept.shape)} does not fit values of shape "
            f"{tuple(values.shape)}"
        )
    if kept is None:
        return None
    return kept.reshape(kept.shape + (1,) * (values.ndim - kept.ndim)).expand(values.shape)


def averaged(values: Tensor, counted: Tensor | None, per: Per) -> Tensor:
    """One number: the mean over examples of each one's mean, or over all that counts."""
    if per == "row" or values.ndim < 2:
        return masked_mean(values, counted)
    each = tuple(range(1, values.ndim))  # no flattening: it would copy a mask that is expanded
    kept = torch.ones_like(values, dtype=torch.bool) if counted is None else counted
    sums = torch.where(kept, values, 0).sum(each)
    return masked_mean(sums / kept.sum(each).clamp_min(1))
