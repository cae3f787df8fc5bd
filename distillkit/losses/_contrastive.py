"""Contrastive losses: each example against the others of the batch."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from .._attention import inner_products
from ..errors import ShapeError
from ._divergence import forward_kl
from ._feature import unit
from ._signature import check_positive, checked_pair

__all__ = ["contrastive_relational", "info_nce", "interactive_contrastive"]

ContrastiveTemperature = Annotated[float, Field(gt=0)]


def info_nce(
    student: Tensor, teacher: Tensor, *, temperature: ContrastiveTemperature = 0.07
) -> Tensor:
    r"""Cross-entropy of finding one's own teacher embedding among the batch's.

    .. math:: -\log \frac{\exp(\cos(s_i, t_i) / \tau)}{\sum_j \exp(\cos(s_i, t_j) / \tau)}

    One direction; CLIP's loss is the mean of two calls with the arguments swapped.

    Shape: ``(n,d),(n,d)->(n)``.

    Args:
        student: embeddings; they are brought to length 1.
        teacher: embeddings of the same examples.
        temperature: divides similarities, > 0; it never multiplies the loss.

    Returns:
        One value >= 0 for each example; 0 for a batch of one.

    Raises:
        ShapeError: unequal shapes.
        OptionError: a temperature that is not positive.

    Examples:
        >>> info_nce(torch.eye(2), torch.eye(2), temperature=1.0)
        tensor([0.3133, 0.3133])

    Source: van den Oord et al., *Contrastive Predictive Coding*, 2018,
    https://arxiv.org/abs/1807.03748, equation 4.
    """
    check_positive("temperature", temperature)
    student, teacher = checked_pair("info_nce", "(n,d),(n,d)->(n)", student, teacher)
    return _own_among_all(student, teacher, temperature)


def contrastive_relational(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    student_temperature: ContrastiveTemperature = 0.07,
    teacher_temperature: ContrastiveTemperature = 0.07,
) -> Tensor:
    r"""Forward KL of the two models' image-to-text and text-to-image matching (CLIP-KD's CRD).

    .. math:: \tfrac12 [KL(p^{I \to T}_i \| q^{I \to T}_i) + KL(p^{T \to I}_i \| q^{T \to I}_i)]

    with p and q the softmax of cosines over the batch, each divided by its model's temperature.

    Shape: ``(n,d),(n,d),(n,e),(n,e)->(n)``.

    Args:
        student_image: embeddings of the student.
        student_text: of the same width.
        teacher_image: embeddings of the teacher.
        teacher_text: of the same width.
        student_temperature: divides the student's similarities, > 0.
        teacher_temperature: divides the teacher's, > 0.

    Returns:
        One value >= 0 for each pair; exactly 0 for equal embeddings and temperatures.

    Raises:
        ShapeError: unequal shapes.
        OptionError: a temperature that is not positive.

    Examples:
        >>> x, y = torch.eye(2), torch.eye(2).flip(0)
        >>> contrastive_relational(x, x, x, y, student_temperature=1.0, teacher_temperature=1.0)
        tensor([0.4621, 0.4621])

    Source: Yang et al., *CLIP-KD*, 2024, https://arxiv.org/abs/2307.12732, "Contrastive Relational
    Distillation".
    """
    check_positive("student_temperature", student_temperature)
    check_positive("teacher_temperature", teacher_temperature)
    student = _checked_modalities("student", student_image, student_text)
    teacher = _checked_modalities("teacher", teacher_image, teacher_text)
    _same_examples(student[0], teacher[0])
    total = torch.zeros(())
    for i, j in ((0, 1), (1, 0)):
        log_q = _matching(student[i], student[j], student_temperature)
        log_p = _matching(teacher[i], teacher[j], teacher_temperature)
        total = total.to(log_q.device) + forward_kl(log_q, log_p) / 2
    return total


def interactive_contrastive(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    temperature: ContrastiveTemperature = 0.07,
) -> Tensor:
    r"""Cross-entropy of finding the partner among the teacher's embeddings (CLIP-KD's ICL).

    .. math:: -\tfrac12 [\log \mathrm{softmax}(\cos(s^I_i, t^T_j) / \tau)_i
                       + \log \mathrm{softmax}(\cos(s^T_i, t^I_j) / \tau)_i]

    Shape: ``(n,d),(n,d),(n,d),(n,d)->(n)``.

    Args:
        student_image: embeddings of the student, in the teacher's width.
        student_text: the same.
        teacher_image: embeddings of the teacher.
        teacher_text: the same.
        temperature: divides similarities, > 0.

    Returns:
        One value >= 0 for each pair; 0 for a batch of one.

    Raises:
        ShapeError: unequal shapes.
        OptionError: a temperature that is not positive.

    Examples:
        >>> x = torch.eye(2)
        >>> interactive_contrastive(x, x, x, x, temperature=1.0)
        tensor([0.3133, 0.3133])

    Source: Yang et al., *CLIP-KD*, 2024, https://arxiv.org/abs/2307.12732, "Interactive Contrastive
    Learning".
    """
    check_positive("temperature", temperature)
    name, signature = "interactive_contrastive", "(n,d),(n,d)->(n)"
    image, text = checked_pair(name, signature, student_image, teacher_text)
    other_text, other_image = checked_pair(name, signature, student_text, teacher_image)
    _same_examples(image, other_image)
    found = _own_among_all(image, text, temperature)
    return (found + _own_among_all(other_text, other_image, temperature)) / 2


def _own_among_all(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    return -_matching(one, other, temperature).diagonal(dim1=-2, dim2=-1)


def _matching(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Log-probability ``(n, n)`` of each of the others for each one."""
    return (inner_products(unit(one), unit(other)) / temperature).log_softmax(-1)


def _checked_modalities(side: str, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    return checked_pair(f"contrastive_relational ({side})", "(n,d),(n,d)->(n)", image, text)


def _same_examples(student: Tensor, teacher: Tensor) -> None:
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ShapeError(
            f"student and teacher embed the same examples; got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
