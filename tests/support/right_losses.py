"""Losses without a fault that are written otherwise than the library's: the kit must pass them."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import nn

from distillkit import LossSpec, losses, testing
from distillkit.losses import checked_pair

ROWS = "(v),(v)->()"
VECTORS = "(d),(d)->()"
POSITIVE = Annotated[float, Field(gt=0)]


class Weighted(nn.Module):
    """A learnable weight of one number, in float32 as modules are, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, student, teacher, *, temperature: POSITIVE = 1.0):
        student, teacher = checked_pair("weighted", VECTORS, student, teacher)
        scaled = (student - teacher).square().mean(-1) / temperature
        return scaled * self.weight[0].square() * self.frozen[0]


class Projected(nn.Module):
    """A learned projection between widths that are fixed."""

    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(3, 2)

    def forward(self, student, teacher):
        if student.shape[:-1] != teacher.shape[:-1] or not student.is_floating_point():
            raise ValueError(f"{list(student.shape)} and {list(teacher.shape)}: float, please")
        student, teacher = checked_pair("projected", "(d),(e)->()", student, teacher)
        # by hand: under autocast a linear layer would compute in bfloat16
        projected = (student[..., None, :] * self.projection.weight).sum(-1) + self.projection.bias
        return (projected - teacher).square().mean(-1)


def of_fixed_widths(draw):
    student = torch.randn(*draw.leading, 3, generator=draw.generator, dtype=torch.float64)
    teacher = torch.randn(*draw.leading, 2, generator=draw.generator, dtype=torch.float64)
    return testing.Arguments((student,), (teacher,))


def raises_value_errors(student, teacher):
    if student.shape != teacher.shape or student.ndim == 0:
        raise ValueError(f"student is {student.shape}, teacher is {teacher.shape}")
    if not student.is_floating_point():
        raise ValueError(f"floating point is needed, not {student.dtype}")
    wide = [x if x.dtype == torch.float64 else x.float() for x in (student, teacher)]
    return (wide[0] - wide[1]).square().mean(-1)


def periodic(student, teacher):
    """Angles, in turns: float32 knows nothing of the phase of 1e4 turns."""
    student, teacher = checked_pair("periodic", VECTORS, student, teacher)
    one, other = ((2 * math.pi * x).sin() for x in (student, teacher))
    return 10 * (one - other).abs().mean(-1)


def hot_by_default(student, teacher, *, temperature: POSITIVE = 2.0):
    return losses.kl_divergence(student, teacher, temperature=temperature)


def bounds_in_the_annotation(student, teacher, *, weight: POSITIVE = 1.0):
    return weight * losses.mse(student, teacher)


def refuses_a_guess(student, teacher, *, share=1.0, order: int = 2):
    if not 0 < share <= 1:
        raise ValueError(f"share lies between 0 and 1; got {share}")
    if order not in (1, 2):
        raise NotImplementedError(f"order {order}")
    return share * losses.mse(student, teacher)


def welsch(student, teacher):
    """Bounded, and flat far out, without saying so."""
    student, teacher = checked_pair("welsch", VECTORS, student, teacher)
    return -torch.expm1(-(student - teacher).square()).mean(-1)


def of_eight_heads(student, teacher, *, heads: int = 8):
    """An option called heads that is a number of them."""
    return losses.attention_jsd(student, teacher) * (8 / heads)


def content_within_a_margin(student, teacher, *, margin: Annotated[float, Field(ge=0, le=2)] = 2.0):
    """Flat where both sides are near each other, as losses with a margin are."""
    student, teacher = checked_pair("content_within_a_margin", VECTORS, student, teacher)
    return ((student - teacher).square().mean(-1) - margin).clamp(min=0)


def content_on_one_side(student, teacher):
    """Flat on one side of the teacher: the student may say more than it, never less."""
    student, teacher = checked_pair("content_on_one_side", VECTORS, student, teacher)
    return (teacher - student).clamp(min=0).mean(-1)


SQUARE = ("nonnegative", "exactly_zero_at_identity", "symmetric", "smooth")

RIGHT = (
    LossSpec("weighted", Weighted(), signature=VECTORS, tags=SQUARE),
    LossSpec("projected", Projected(), signature="(d),(e)->()", example=of_fixed_widths),
    LossSpec("raises_value_errors", raises_value_errors, signature=VECTORS, tags=SQUARE),
    LossSpec("periodic", periodic, signature=VECTORS, tags=["nonnegative", "symmetric"], bound=20),
    LossSpec("hot_by_default", hot_by_default, signature=ROWS, tags=("temperature_squared",)),
    LossSpec("annotated", bounds_in_the_annotation, signature=VECTORS, tags=iter(SQUARE)),
    LossSpec("refuses_a_guess", refuses_a_guess, signature=VECTORS, tags=set(SQUARE)),
    LossSpec("welsch", welsch, signature=VECTORS, tags=SQUARE, bound=np.float32(1)),
    LossSpec("margin", content_within_a_margin, signature=VECTORS, tags=("nonnegative",)),
    LossSpec("one_sided", content_on_one_side, signature=VECTORS, tags=("nonnegative",)),
    LossSpec("of_eight_heads", of_eight_heads, signature="attention", tags=("nonnegative",)),
)
