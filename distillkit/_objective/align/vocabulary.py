"""Two vocabularies, of which one extends the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ShapeError

Pair = tuple[Tensor, Tensor]


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


def _common_classes(name: str, student: Tensor, teacher: Tensor) -> int:
    check_tensors(name, student, teacher)
    return min(student.shape[-1], teacher.shape[-1])


def check_tensors(name: str, student: object, teacher: object) -> None:
    """Refuse what has no last axis to align.

    Raises:
        ShapeError: a side that is no tensor, or a scalar.
    """
    for side, x in (("student", student), ("teacher", teacher)):
        if not isinstance(x, Tensor) or x.ndim == 0:
            raise ShapeError(f"{name} aligns the last axis of tensors; the {side}'s signal is {x}")
