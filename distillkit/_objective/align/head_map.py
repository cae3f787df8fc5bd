"""A trained mixture of attention heads."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..._attention import Attention, widen
from ...errors import OptionError, ShapeError

Heads = Annotated[int, Field(gt=0)]


class HeadMap(nn.Module):
    r"""A trained mixture of the student's attention heads for each of the teacher's.

    .. math:: A'_g = \sum_h \mathrm{softmax}(W_g)_h \, A_h

    of probabilities, so that every row remains a distribution over the keys and any loss of
    attentions can compare it. The mixture is even at first. A row counts where it counts for every
    head; a key is kept where a head keeps it.

    Its parameters exist as soon as both numbers of heads are known: here, or from an example,
    ``Distiller(..., example=batch)``.

    Args:
        student_heads: how many heads the student has.
        teacher_heads: how many the teacher has.

    Raises:
        OptionError: one number of heads without the other, one below 1.
        ShapeError: no attentions, other numbers of heads, or called before it has any.

    Examples:
        >>> student, teacher = (Attention.from_scores(torch.zeros(1, h, 2, 3)) for h in (2, 4))
        >>> mixed, _ = HeadMap(student_heads=2, teacher_heads=4)(student, teacher)
        >>> mixed.shape
        (1, 4, 2, 3)

    Source: after Feng et al., *Align-KD*, 2025, https://arxiv.org/abs/2412.01282. The authors' code
    maps the teacher's heads to the student's by a convolution of size 1, whose rows are no
    distributions; here the student's are mixed, by weights that are not negative and sum to 1.
    """

    def __init__(
        self, *, student_heads: Heads | None = None, teacher_heads: Heads | None = None
    ) -> None:
        super().__init__()
        given = student_heads, teacher_heads
        if (student_heads is None) != (teacher_heads is None) or 0 in given:
            raise OptionError(
                "head_map takes both student_heads and teacher_heads, at least 1, or neither and "
                f"learns them from an example; got {student_heads} and {teacher_heads}"
            )
        self.weight: nn.Parameter | None = None
        if student_heads is not None and teacher_heads is not None:
            self._make(student_heads, teacher_heads, None)

    @property
    def is_built(self) -> bool:
        """Whether its parameters exist."""
        return self.weight is not None

    def build(self, student: Attention, teacher: Attention) -> None:
        """Make the parameters for an example's heads, on its device, unless they exist."""
        _check_attentions(student, teacher)
        if not self.is_built:
            self._make(student.shape[1], teacher.shape[1], student.device)

    def forward(self, student: Attention, teacher: Attention) -> tuple[Attention, Attention]:
        """The student's attention with the teacher's number of heads; the teacher's as it is."""
        if self.weight is None:
            raise ShapeError(
                "head_map has no numbers of heads yet: give it student_heads and teacher_heads, or "
                "build it from an example, Distiller(..., example=batch)"
            )
        _check_attentions(student, teacher)
        there, here = self.weight.shape
        if (student.shape[1], teacher.shape[1]) != (here, there):
            raise ShapeError(
                f"head_map maps {here} heads to {there}; got student {student.shape}, teacher "
                f"{teacher.shape}, each (b, h, q, k)"
            )
        scores = student.scores()
        weights = widen(self.weight).softmax(-1).to(scores.dtype)
        rows = student.valid_rows().all(1)
        return Attention.from_scores(_mixed(scores, weights, rows), rows=rows), teacher

    def _make(self, student: int, teacher: int, device: torch.device | None) -> None:
        self.weight = nn.Parameter(torch.zeros(teacher, student, device=device))


def _mixed(scores: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """The log of mixed probabilities ``(b, g, q, k)``; -inf where no head keeps an entry.

    It never leaves the logarithms: a probability that underflows is no key that is dropped.
    """
    kept = (scores != -torch.inf) & rows[:, None, :, None]
    filled = torch.where(kept, scores, torch.where(kept.any(-1, keepdim=True), -torch.inf, 0.0))
    log_p = torch.where(kept, filled.log_softmax(-1), -torch.inf)
    some = kept.any(1, keepdim=True)
    peak = torch.where(some, log_p.detach(), 0).amax(1, keepdim=True)
    shares = torch.where(kept, (torch.where(kept, log_p, 0) - peak).exp(), 0)
    mixed = torch.einsum("gh,bhqk->bgqk", weights, shares)
    return torch.where(some, torch.where(some, mixed, 1).log() + peak, -torch.inf)


def _check_attentions(student: Any, teacher: Any) -> None:
    for side, signal in (("student", student), ("teacher", teacher)):
        if not isinstance(signal, Attention):
            found = tuple(signal.shape) if isinstance(signal, Tensor) else type(signal).__name__
            raise ShapeError(f"head_map mixes heads of attentions; the {side}'s signal is {found}")
