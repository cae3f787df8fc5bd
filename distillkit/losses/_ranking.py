"""Losses that compare the order of scored candidates."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..errors import OptionError
from ._divergence import check_classes
from ._signature import checked_pair, checked_where

__all__ = ["partial_ranking"]

Top = Annotated[int, Field(ge=1)]


def partial_ranking(
    student: Tensor,
    teacher: Tensor,
    *,
    top: Top | None = None,
    where: Tensor | None = None,
) -> Tensor:
    r"""The likelihood of the teacher's best candidates, in its order, by the student's scores.

    .. math:: -\sum_{j \le J} \log \frac{e^{s_j}}{\sum_{k:\, t_k \le t_j} e^{s_k}}

    with s the student's and t the teacher's scores, and j over the candidates that fewer than J
    others stand above. The order of the candidates behind the first J says nothing, nor does how
    far apart the teacher's scores are. The teacher's scores get no gradient.

    Candidates that tie for the teacher are each compared with the others of the tie as well, so
    that no order among them is preferred; a tie across the J-th place counts as a whole.

    Shape: ``(v),(v)->()``; v candidates.

    Args:
        student: scores of the candidates of each example.
        teacher: scores of the same candidates; -inf: banned, as ``where`` says it.
        top: J, how many of the teacher's best are in order; None: all.
        where: boolean, the candidates that exist.

    Returns:
        One value >= 0 for each example; 0 where one candidate is left, or none; +inf where the
        student's score of one of the first J is -inf.

    Raises:
        ShapeError: shapes that do not fit, one candidate.
        OptionError: ``top`` below 1.

    Examples:
        >>> student, teacher = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.9, 0.1, 0.4]])
        >>> partial_ranking(student, teacher, top=1)
        tensor([0.4076])
        >>> partial_ranking(student, teacher)
        tensor([1.7209])

    Source: Chen et al., *How to Make Cross Encoder a Good Teacher for Efficient Image-Text
    Retrieval?* (CPRD), 2024, https://arxiv.org/abs/2407.07479, "partial ranking" of hard
    negatives. The ties are this library's.
    """
    student, teacher = checked_pair("partial_ranking", "(v),(v)->()", student, teacher)
    check_classes("partial_ranking", student, teacher)
    where = checked_where(where, student)
    if top is not None and not top >= 1:
        raise OptionError(f"top is how many candidates are in order, at least 1; got {top}")
    teacher = teacher.detach()
    kept = teacher != -torch.inf
    kept = kept if where is None else kept & where
    # row j: the candidates that compete for the place of candidate j
    behind = kept[..., None, :] & (teacher[..., None, :] <= teacher[..., :, None])
    above = kept[..., None, :] & (teacher[..., None, :] > teacher[..., :, None])
    counted = kept if top is None else kept & (above.sum(-1) < top)
    lacking = counted & (student == -torch.inf)
    reached = kept & (student != -torch.inf)
    scores = torch.where(reached, student, 0)
    # a row of nothing has no logarithm: such a row is computed from zeros and dropped afterwards
    competing = behind & reached[..., None, :]
    some = competing.any(-1, keepdim=True)
    filled = torch.where(competing, scores[..., None, :], torch.where(some, -torch.inf, 0.0))
    terms = torch.where(counted & reached, filled.logsumexp(-1) - scores, 0)
    value = torch.where(lacking.any(-1), torch.inf, terms.sum(-1).clamp_min(0))
    unordered = (torch.isnan(teacher) & kept).any(-1)  # a teacher that diverged must be seen
    return torch.where(unordered, torch.nan, value)
