"""The mean of a loss's values, and how much went into it.

It is ``losses.masked_mean`` of values or of examples, together with its denominator.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._attention import widen

Per = Literal["example", "row"]


class Mean(NamedTuple):
    """A mean and its denominator.

    Attributes:
        value: the mean, a scalar with gradient.
        amount: how much was averaged: values, or examples; detached.
    """

    value: Tensor
    amount: Tensor


def averaged(
    values: Tensor, kept: Tensor | None, per: Per, normalizer: float | Tensor | None = None
) -> Mean:
    """The mean over examples of each one's mean, or the mean over all values that count.

    Args:
        values: what a loss returned, one value for each position.
        kept: which of them count, boolean of the same shape; None: all do.
        per: ``"row"``: each value weighs the same; ``"example"``: each example does, also one in
            which nothing counts, so that the parts of a batch add up.
        normalizer: divide by this instead of by the count.

    Examples:
        >>> values = torch.tensor([[1.0, 2.0], [3.0, torch.nan]])
        >>> kept = torch.tensor([[True, True], [True, False]])
        >>> averaged(values, kept, "row")
        Mean(value=tensor(2.), amount=tensor(3))
        >>> averaged(values, kept, "example")
        Mean(value=tensor(2.2500), amount=tensor(2))
        >>> averaged(values, kept, "example", 4).value
        tensor(1.1250)
    """
    if values.dtype.itemsize < 4:
        values = widen(values)
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.to(values.dtype)  # a count in float64 makes no loss in float64
    if per == "example" and values.ndim > 1:
        return _over_examples(values, kept, normalizer)
    if kept is None:
        count = values.numel()
        size = max(1, count) if normalizer is None else normalizer
        return Mean(values.sum() / size, _number(count, values))
    amount = kept.sum()
    size = amount.clamp_min(1) if normalizer is None else normalizer
    return Mean(torch.where(kept, values, 0).sum() / size, amount)


def _over_examples(values: Tensor, kept: Tensor | None, normalizer: float | Tensor | None) -> Mean:
    examples = values.shape[0]
    size = max(1, examples) if normalizer is None else normalizer
    if kept is None:
        of_each = max(1, values.numel() // max(1, examples))
        return Mean(values.sum() / (of_each * size), _number(examples, values))
    inner = tuple(range(1, values.ndim))  # no flattening: it would copy a mask that is expanded
    sums = torch.where(kept, values, 0).sum(inner)
    means = sums / kept.sum(inner).clamp_min(1)
    return Mean(means.sum() / size, _number(examples, values))


def _number(count: int, like: Tensor) -> Tensor:
    return torch.full((), count, device=like.device)
