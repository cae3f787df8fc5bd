"""Reconcile what student and teacher expose, by name and never in silence."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from ..errors import ShapeError

Width = Annotated[int, Field(gt=0)]


class Projector(nn.Module):
    """A trained linear map from the student's width to the teacher's.

    Args:
        student_width: d of the student's hidden states ``(..., d)``.
        teacher_width: e of the teacher's ``(..., e)``.
        bias: whether the map has an offset.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4)
        >>> projected, _ = Projector(student_width=3, teacher_width=4)(student, teacher)
        >>> projected.shape
        torch.Size([2, 5, 4])

    Source: Romero et al., *FitNets*, 2015, https://arxiv.org/abs/1412.6550, equation 3.
    """

    def __init__(self, *, student_width: Width, teacher_width: Width, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(student_width, teacher_width, bias=bias)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The student's tensor in the teacher's width; the teacher's as it is."""
        widths = self.linear.in_features, self.linear.out_features
        if (student.shape[-1], teacher.shape[-1]) != widths:
            raise ShapeError(
                f"projector maps width {widths[0]} to {widths[1]}; got student "
                f"{tuple(student.shape)}, teacher {tuple(teacher.shape)}"
            )
        return self.linear(student), teacher
