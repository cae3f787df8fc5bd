"""One loss, made of two of distillkit's."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from distillkit import losses


def jeffreys_divergence(
    student: Tensor, teacher: Tensor, *, temperature: Annotated[float, Field(gt=0)] = 1.0
) -> Tensor:
    """Forward plus reverse KL of softened logits: symmetric, and unbounded on both sides.

    Args:
        student: logits ``(..., v)``.
        teacher: logits ``(..., v)``.
        temperature: above 0; the value is scaled by its square.

    Returns:
        ``(...)``, one value for each position.

    Source: Jeffreys, *An invariant form for the prior probability in estimation problems*, 1946.
    """
    forward = losses.kl_divergence(student, teacher, temperature=temperature)
    return forward + losses.reverse_kl_divergence(student, teacher, temperature=temperature)
