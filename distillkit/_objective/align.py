"""Reconcile what student and teacher expose, by name and never in silence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .._plugins.registry import lookup
from .._plugins.specs import AlignerSpec, resolve
from ..errors import OptionError, RecipeError, ShapeError

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
        self.linear: nn.Linear | None = None
        if student_width is not None and teacher_width is not None:
            self._make(student_width, teacher_width, None)

    @property
    def is_built(self) -> bool:
        """Whether its parameters exist."""
        return self.linear is not None

    def build(self, student: Tensor, teacher: Tensor) -> None:
        """Make the parameters for an example's widths, on its device, unless they exist."""
        _check_tensors("projector", student, teacher)
        if not self.is_built:
            self._make(student.shape[-1], teacher.shape[-1], student.device)

    def forward(self, student: Tensor, teacher: Tensor) -> Pair:
        """The student's tensor in the teacher's width; the teacher's as it is."""
        if self.linear is None:
            raise ShapeError(
                "projector has no widths yet: give it student_width and teacher_width, or build it "
                "from an example, Distiller(..., example=batch)"
            )
        widths = self.linear.in_features, self.linear.out_features
        _check_tensors("projector", student, teacher)
        if (student.shape[-1], teacher.shape[-1]) != widths:
            raise ShapeError(
                f"projector maps width {widths[0]} to {widths[1]}; got student "
                f"{tuple(student.shape)}, teacher {tuple(teacher.shape)}"
            )
        return self.linear(student), teacher

    def _make(self, student: int, teacher: int, device: torch.device | None) -> None:
        linear = nn.Linear(student, teacher, bias=self.bias, device=device)
        self.linear = linear
        if self.kind == "orthogonal":
            parametrizations.orthogonal(linear)


def truncate() -> Callable[[Tensor, Tensor], Pair]:
    """The classes that both have, for vocabularies of which one only appends to the other.

    Padding to a multiple of 64 and added tokens are such; each side is renormalised over what is
    left. Unrelated vocabularies need ``universal_logit_distance``.

    Examples:
        >>> student, teacher = truncate()(torch.zeros(2, 5), torch.zeros(2, 8))
        >>> student.shape, teacher.shape
        (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    def aligned(student: Tensor, teacher: Tensor) -> Pair:
        common = _common_classes("truncate", student, teacher)
        return student[..., :common], teacher[..., :common]

    return aligned


def mask() -> Callable[[Tensor, Tensor], Pair]:
    """The size of the larger vocabulary, with -inf on both sides where only one has a class.

    The value of a loss is that of :func:`truncate`; labels and stored indices of the larger
    vocabulary stay what they are.

    Examples:
        >>> student, teacher = mask()(torch.zeros(1, 2), torch.zeros(1, 3))
        >>> student.tolist(), teacher.tolist()
        ([[0.0, 0.0, -inf]], [[0.0, 0.0, -inf]])
    """

    def aligned(student: Tensor, teacher: Tensor) -> Pair:
        common = _common_classes("mask", student, teacher)
        size = max(student.shape[-1], teacher.shape[-1])
        one, other = (
            F.pad(x[..., :common], (0, size - common), value=-torch.inf) for x in (student, teacher)
        )
        return one, other

    return aligned


def make_aligner(given: str | Mapping[str, Any]) -> nn.Module:
    """The aligner of a name, or of a table with a ``name`` and its options, as a module."""
    table = {"name": given} if isinstance(given, str) else dict(given)
    if "name" not in table:
        raise RecipeError(f"an aligner is a name or a table with a `name`; got {given!r}")
    factory = resolve(lookup(AlignerSpec, table.pop("name")).factory)
    try:
        inspect.signature(factory).bind(**table)
    except TypeError as error:
        raise RecipeError(f"aligner {given!r}: {error}") from None
    made = factory(**table)
    return made if isinstance(made, nn.Module) else _Untrained(made, given)


class _Untrained(nn.Module):
    """An aligner without parameters, as a module; a pickle names it and makes it again."""

    def __init__(
        self, function: Callable[..., tuple[Any, Any]], given: str | Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.function, self._given = function, given

    def __reduce__(self) -> tuple[Any, ...]:
        return make_aligner, (self._given,)

    def forward(self, student: Any, teacher: Any, **tokens: Any) -> tuple[Any, Any]:
        return self.function(student, teacher, **tokens)


def takes_tokens(aligner: nn.Module) -> bool:
    """Whether an aligner asks, by these two parameters, for what is known of the tokens."""
    function = aligner.function if isinstance(aligner, _Untrained) else aligner.forward
    return {"student_tokens", "teacher_tokens"} <= inspect.signature(function).parameters.keys()


def _common_classes(name: str, student: Tensor, teacher: Tensor) -> int:
    _check_tensors(name, student, teacher)
    return min(student.shape[-1], teacher.shape[-1])


def _check_tensors(name: str, student: object, teacher: object) -> None:
    for side, x in (("student", student), ("teacher", teacher)):
        if not isinstance(x, Tensor) or x.ndim == 0:
            raise ShapeError(f"{name} aligns the last axis of tensors; the {side}'s signal is {x}")
