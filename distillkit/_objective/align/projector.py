"""A trained map between two widths."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..._attention import widen
from ...errors import OptionError, ShapeError
from .vocabulary import check_tensors

Width = Annotated[int, Field(gt=0)]
Pair = tuple[Tensor, Tensor]


class Projector(nn.Module):
    """A trained linear map from the student's width to the teacher's.

    Its parameters exist as soon as both widths are known: here, or from an example,
    ``Distiller(..., example=batch)``. It never makes them in a forward, where an optimiser made
    before would not know them.

    Args:
        student_width: d of the student's hidden states ``(..., d)``.
        teacher_width: e of the teacher's ``(..., e)``.
        kind: ``"linear"``, or ``"orthogonal"``: the matrix keeps orthonormal rows or columns while
            it learns, so that the student cannot let the projector do its work.
        bias: whether the map has an offset; by default the linear one has, the orthogonal has not.
        keep_equal: leave widths that are equal alone, without a map: for recipes that are to fit
            models of equal and of unequal widths.

    Raises:
        OptionError: an unknown kind, one width without the other.
        ShapeError: called with other widths, or before it has any.

    Examples:
        >>> student, teacher = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4)
        >>> projected, _ = Projector(student_width=3, teacher_width=4)(student, teacher)
        >>> projected.shape
        torch.Size([2, 5, 4])

    Source: Romero et al., *FitNets*, 2015, https://arxiv.org/abs/1412.6550, equation 3; orthogonal:
    Miles, Elezi and Deng, *VkD: Improving Knowledge Distillation using Orthogonal Projections*,
    2024, https://arxiv.org/abs/2403.06213, "Orthogonal Projections".
    """

    def __init__(
        self,
        *,
        student_width: Width | None = None,
        teacher_width: Width | None = None,
        kind: Literal["linear", "orthogonal"] = "linear",
        bias: bool | None = None,
        keep_equal: bool = False,
    ) -> None:
        super().__init__()
        if kind not in ("linear", "orthogonal"):
            raise OptionError(f'projector: kind is "linear" or "orthogonal"; got {kind!r}')
        if (student_width is None) != (teacher_width is None):
            raise OptionError(
                "projector takes both student_width and teacher_width, or neither and learns them "
                f"from an example; got {student_width} and {teacher_width}"
            )
        self.kind, self.bias = kind, kind == "linear" if bias is None else bias
        self.keep_equal = keep_equal
        self.linear: nn.Linear | _OrthogonalLinear | None = None
        self._is_settled = False
        if student_width is not None and teacher_width is not None:
            self._make(student_width, teacher_width, None)

    @property
    def is_built(self) -> bool:
        """Whether its parameters exist, or are known not to be needed."""
        return self.linear is not None or self._is_settled

    @property
    def works_unbuilt(self) -> bool:
        """Whether equal widths need no example."""
        return self.keep_equal

    def build(self, student: Tensor, teacher: Tensor) -> None:
        """Make the parameters for an example's widths, on its device, unless they exist."""
        check_tensors("projector", student, teacher)
        if not self.is_built:
            self._make(student.shape[-1], teacher.shape[-1], student.device)

    def forward(self, student: Tensor, teacher: Tensor) -> Pair:
        """The student's tensor in the teacher's width; the teacher's as it is."""
        if self.linear is None and self.keep_equal:
            check_tensors("projector", student, teacher)
            if student.shape[-1] == teacher.shape[-1]:
                return student, teacher
        if self.linear is None:
            raise ShapeError(
                "projector has no widths yet: give it student_width and teacher_width, or build it "
                "from an example, Distiller(..., example=batch)"
            )
        widths = self.linear.in_features, self.linear.out_features
        check_tensors("projector", student, teacher)
        if (student.shape[-1], teacher.shape[-1]) != widths:
            raise ShapeError(
                f"projector maps width {widths[0]} to {widths[1]}; got student "
                f"{tuple(student.shape)}, teacher {tuple(teacher.shape)}"
            )
        # signals are float32 at least; the weights follow the distiller's dtype, or FSDP2's policy
        dtype = next(self.linear.parameters()).dtype
        projected: Tensor = self.linear(student.to(dtype))
        return projected.to(student.dtype), teacher

    def _make(self, student: int, teacher: int, device: torch.device | None) -> None:
        if self.keep_equal and student == teacher:
            self._is_settled = True
            return
        kind = _OrthogonalLinear if self.kind == "orthogonal" else nn.Linear
        self.linear = kind(student, teacher, bias=self.bias, device=device)


class _OrthogonalLinear(nn.Module):
    """A linear map whose matrix has orthonormal rows or columns, whatever its parameter becomes.

    The matrix is the orthogonal factor of a QR decomposition. torch's own parametrization neither
    pickles nor computes in half precision.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, device: torch.device | None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.original = nn.Parameter(torch.empty(out_features, in_features, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device)) if bias else None
        nn.init.orthogonal_(self.original)

    @property
    def weight(self) -> Tensor:
        """The matrix ``(out, in)``, in float32 at least."""
        tall = widen(self.original)
        is_wide = self.out_features < self.in_features
        q, r = torch.linalg.qr(tall.mT if is_wide else tall)
        signs = torch.where(r.diagonal() < 0, -1.0, 1.0)  # which QR alone leaves open
        signed: Tensor = q * signs
        return signed.mT if is_wide else signed

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype), self.bias)
