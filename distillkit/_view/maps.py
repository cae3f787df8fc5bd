"""The numbers of one layer: probabilities, which rows count, and how far both sides are apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._attention import Attention
from .._backbone.axis import TokenAxis
from .._objective.align.overlap import overlap
from ..errors import ShapeError
from ..losses import attention_kl, shared_rows

Axes = tuple[TokenAxis, TokenAxis]


class Maps(NamedTuple):
    """One side of a layer; the page makes the mean of its heads.

    Attributes:
        probabilities: ``(b, h, q, k)`` float32; 0 where an entry does not count.
        counts: boolean ``(b, h, q)``: rows that count.
    """

    probabilities: Tensor
    counts: Tensor


class Distances(NamedTuple):
    """How far a student's layer is from the teacher's.

    Attributes:
        kl: ``(b, n, q)`` float32: of each head and of their mean, or of the mean alone where the
            sides have unequally many heads.
        counts: boolean ``(b, n, q)``: the rows that a loss compares.
    """

    kl: Tensor
    counts: Tensor

    def means(self) -> Tensor:
        """The mean over the rows that count, ``(b, n)``; NaN where none does."""
        total = torch.where(self.counts, self.kl, 0).sum(-1)
        return total / self.counts.sum(-1)


def same_tokens(student: Attention, teacher: Attention, axes: tuple[Axes, Axes]) -> bool:
    """Whether both sides' rows and keys are the same tokens, as far as it is known."""
    if student.shape[2:] != teacher.shape[2:]:
        return False
    for one, other in zip(*axes, strict=True):
        if one.extents is not None and other.extents is not None:
            if not torch.equal(*_alike(one.extents, other.extents)):
                return False
        elif _is_pair(one.grid) and _is_pair(other.grid) and one.grid != other.grid:
            raise ShapeError(
                f"the student's {one.modality} tokens are a grid of {one.grid}, the teacher's of "
                f"{other.grid}, and nothing says where they lie in the raw image: give both sides' "
                "layouts `extents`, or show one side alone"
            )
    return True


def _is_pair(grid: object) -> bool:
    return isinstance(grid, tuple)


def _alike(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    b = max(len(one), len(other))
    return tuple(x.cpu().double().expand(b, -1, -1) for x in (one, other))  # type: ignore[return-value]


def on_same_tokens(
    student: Attention, teacher: Attention, axes: tuple[Axes, Axes]
) -> tuple[Attention, Attention]:
    """Both attentions over the student's tokens; the teacher's is carried there by overlap.

    Raises:
        ShapeError: other tokens, and nothing says where they lie.
    """
    if same_tokens(student, teacher, axes):
        return student, teacher
    return overlap(student, teacher, student_tokens=axes[0], teacher_tokens=axes[1])


@torch.no_grad()
def maps_of(attention: Attention) -> Maps:
    """The maps of one side.

    Examples:
        >>> maps = maps_of(Attention.from_scores(torch.zeros(1, 2, 3, 4)))
        >>> maps.probabilities.shape, maps.counts.shape
        (torch.Size([1, 2, 3, 4]), torch.Size([1, 2, 3]))
    """
    return Maps(attention.probabilities().float(), attention.valid_rows())


@torch.no_grad()
def distances_of(student: Attention, teacher: Attention) -> Distances:
    """The Kullback-Leibler divergence of each row from the teacher's, as the losses compute it."""
    kl = [attention_kl(student, teacher, heads="mean")]
    counts = [shared_rows(student, teacher, heads="mean")]
    if student.shape[1] == teacher.shape[1]:
        kl.insert(0, attention_kl(student, teacher))
        counts.insert(0, shared_rows(student, teacher))
    return Distances(torch.cat(kl, 1).float(), torch.cat(counts, 1))
