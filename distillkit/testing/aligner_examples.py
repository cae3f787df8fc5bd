"""Examples of both sides changed on purpose: with padding, of other kinds and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .._attention import Attention
from .._backbone.axis import TokenAxis
from .._backbone.signals import TokenAxes
from .aligner_case import Sides, numbers

SIDES = ("student", "teacher")


def padded(sides: Sides, fill: float) -> Sides:
    """The sides with a last token of the first example that is padding and holds ``fill``."""
    axes = [_padded_axes(getattr(sides, s), sides.axes[i]) for i, s in enumerate(SIDES)]
    filled = sides.map(lambda x: _with_padding(x, fill))
    return replace(filled, student_tokens=axes[0], teacher_tokens=axes[1])


def _padded_axes(signal: Any, axes: TokenAxes) -> TokenAxes:
    found: list[TokenAxis | None] = []
    for count, axis in zip(token_counts(signal), axes, strict=False):
        if axis is None:
            found.append(axis)
            continue
        valid = torch.ones(signal.shape[0], count, dtype=torch.bool)
        valid = valid if axis.valid is None else axis.valid.clone()
        valid[0, -1] = False
        extents = axis.extents
        if extents is not None:
            extents = torch.where(valid[..., None], extents, 0)
        found.append(replace(axis, valid=valid, extents=extents))
    return tuple(found)


def _with_padding(signal: Any, fill: float) -> Any:
    if isinstance(signal, Tensor):
        filled = signal.clone()
        filled[0, -1] = fill
        return filled
    kept = signal.keep()
    kept = torch.ones(signal.shape, dtype=torch.bool) if kept is None else kept.clone()
    kept = kept.expand(signal.shape).clone()
    kept[0, :, :, -1] = False
    kept[0, :, -1] = False
    rows = torch.ones(signal.shape[0], signal.shape[2], dtype=torch.bool)
    rows[0, -1] = False
    scores = torch.where(kept, signal.scores().detach(), fill)
    return Attention.from_scores(scores, mask=kept, rows=rows)


def counted(found: Sides) -> Tensor:
    """Which values of the aligned student count."""
    if isinstance(found.student, Attention):
        rows: Tensor = found.student.valid_rows() & found.teacher.valid_rows().all(1, keepdim=True)
        return rows[..., None]
    values = numbers(found.student)
    kept = torch.ones(values.shape[:2], dtype=torch.bool)
    axis = found.student_tokens[0] if found.student_tokens else None
    if axis is not None and axis.valid is not None and axis.valid.shape == kept.shape:
        kept = axis.valid.clone()
        other = found.teacher_tokens[0] if found.teacher_tokens else None
        if other is not None and other.valid is not None:
            kept &= other.valid
    else:
        kept[0, -1] = False
    return kept[..., None]


def wrong_sides(sides: Sides) -> Iterator[tuple[str, Sides]]:
    """Inputs that do not fit, by what is wrong with them."""
    attends = isinstance(sides.student, Attention)
    other: Any = torch.zeros(sides.examples, 3)
    if not attends:
        other = Attention.from_scores(torch.zeros(sides.examples, 1, 2, 3))
    yield "a student's signal of another kind", replace(sides, student=other)
    yield "a teacher's signal of another kind", replace(sides, teacher=other)
    yield "a scalar of the student", replace(sides, student=torch.zeros(()))
    if attends:
        more = Attention.from_scores(nn.functional.pad(_finite(sides.teacher.scores()), (0, 1)))
        yield "a teacher with one key more than its tokens", replace(sides, teacher=more)
        return
    wider = nn.functional.pad(sides.student, (0, 1))
    yield "a student's signal that is wider by one", replace(sides, student=wider)
    wider = nn.functional.pad(sides.teacher, (0, 1))
    yield "a teacher's signal that is wider by one", replace(sides, teacher=wider)


def _finite(scores: Tensor) -> Tensor:
    return torch.where(scores.isfinite(), scores, 0)


def token_counts(signal: Any) -> tuple[int, ...]:
    """How many tokens a signal has along each token axis."""
    if isinstance(signal, Attention):
        return signal.shape[2:]
    return tuple(signal.shape[1:-1])
