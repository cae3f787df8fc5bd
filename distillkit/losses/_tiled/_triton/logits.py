"""Divergences of logits, where one kernel turns a chunk of them into its slopes."""

from __future__ import annotations

from torch import Tensor

from .. import logits
from ..comparison import ForBackward, Forward, Gradients, Kind, Leaves, Pair, Sides, Wanted
from ..divergences import Compared
from . import rows
from .attention import KINDS, as_bytes
from .geometry import Geometry
from .launch import Launch

NO_SECOND_DERIVATIVE = logits.NO_SECOND_DERIVATIVE

CLASSES = 4096  # of a row, that a program looks at at a time
WARPS = 8


def forward(pair: Pair, wanted: Wanted, keep: ForBackward) -> Forward:
    """As :func:`logits.forward`."""
    return logits.forward(pair, wanted, keep, compare_chunk)


def backward(
    upstream: Tensor,
    pair: Pair,
    wanted: Wanted,
    maps: Sides[Tensor] | None = None,  # noqa: ARG001 (the signature of every loop)
    into: Gradients | None = None,
) -> Sides[Gradients]:
    """As :func:`logits.backward`."""
    return logits.backward(upstream, pair, wanted, into=into, compare=compare_chunk)


def scale_guess(upstream: Tensor, pair: Pair, guess: Gradients) -> Leaves[bool]:
    """As :func:`logits.scale_guess`."""
    return logits.scale_guess(upstream, pair, guess)


def compare_chunk(
    kind: Kind, chunk: Sides[Tensor], keeps: Sides[Tensor | None], wanted: Sides[bool]
) -> Compared:
    """The values (n, 1) of a chunk of logits (n, v), which become the slopes that are wanted."""
    launch = launch_for(kind, chunk, keeps, wanted)
    launch.run(chunk.student)
    sides = zip(chunk, wanted, strict=True)
    slopes = Sides(*(x if some else None for x, some in sides))
    return Compared(launch.arguments["value"][:, None], slopes)


def launch_for(
    kind: Kind, chunk: Sides[Tensor], keeps: Sides[Tensor | None], wanted: Sides[bool]
) -> Launch:
    """The launch for a chunk of at least one class."""
    n, classes = chunk.student.shape
    block = min(CLASSES, max(16, 1 << (classes - 1).bit_length()))
    student_keep, teacher_keep = (None if x is None else x.contiguous() for x in keeps)
    arguments = {
        "student": chunk.student,
        "teacher": chunk.teacher,
        "student_keep": as_bytes(student_keep),
        "teacher_keep": as_bytes(teacher_keep),
        "value": chunk.student.new_empty(n),
        "V": classes,
        "beta": kind.beta,
        "KIND": KINDS[kind.name],
        "OF_STUDENT": wanted.student,
        "OF_TEACHER": wanted.teacher,
        "KEEP_THE_SAME": keeps.student is keeps.teacher,
        "BLOCK": block,
    }
    return Launch(rows.compare_rows, n, arguments, Geometry(1, block, WARPS, 1))
