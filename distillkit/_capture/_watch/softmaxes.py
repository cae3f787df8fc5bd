"""The ways to write a softmax: as a function, as ``log_softmax().exp()``, or as ``e / e.sum()``.

Scores in the hands of the model carry the steps that were done to them. What they were divided by
carries its own: where it was summed from the very same scores, its steps go on where theirs end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .calls import Call
from .sighting import PLACE, Step

_LOG_SOFTMAXES = frozenset({"log_softmax", "_log_softmax", "special_log_softmax"})
EXPONENTIALS = frozenset({"exp", "exp_"})
_DIVISIONS = frozenset({"div", "div_", "__truediv__", "__itruediv__", "true_divide", "divide"})
_MULTIPLICATIONS = frozenset({"mul", "mul_", "__mul__", "__imul__", "__rmul__", "multiply"})
_SUBTRACTIONS = frozenset({"sub", "sub_", "__sub__", "__isub__", "subtract"})
_RECIPROCALS = frozenset({"reciprocal", "reciprocal_", "__rtruediv__", "__rdiv__", "pow"})
_TOTALS = frozenset({"sum", "einsum", "nansum"})
BY_HAND = EXPONENTIALS | _DIVISIONS | _MULTIPLICATIONS | _SUBTRACTIONS | {"normalize"}


class Found(NamedTuple):
    """A softmax of scores.

    Attributes:
        steps: from the product to the scores that it was taken of.
        axis: along which.
        division: what takes its place where it is no plain softmax; None: it is one.
    """

    steps: tuple[Step, ...]
    axis: int
    division: Step | None = None


def _axis_of(call: Call, position: int = 1, default: Any = None) -> Any:
    """The axis that a call works along; ``default`` where it does not say."""
    given = call.args[position] if len(call.args) > position else default
    return call.kwargs.get("dim", given)


def softmax_of(call: Call, steps: tuple[Step, ...]) -> Found | None:
    """A softmax by name, of scores with these steps; None: the axis is not said."""
    axis = _axis_of(call)
    if axis is None:
        return None
    if call.name == "softmin":
        shape = tuple(call.result.shape)
        steps = (*steps, Step(torch.neg, "neg", (PLACE,), {}, shape))
    return Found(steps, int(axis))


def softmax_by_hand(
    call: Call, step: Step, steps: tuple[Step, ...], other: tuple[Step, ...]
) -> Found | Step | None:
    """What a call makes of scores: a softmax, or the step of a ``log_softmax``; None: neither.

    Args:
        call: one of ``BY_HAND``.
        step: the call, done again on the scores.
        steps: of the scores.
        other: of what they are divided by, or of what is taken off; empty where it has none.
    """
    if call.name in EXPONENTIALS:
        return _exponential_of(steps)
    if call.name == "normalize":
        return _normalisation_of(call, steps, step)
    if call.name in _SUBTRACTIONS:
        return _log_softmax_step(call, steps, other)
    return _division_of(call, steps, other, step)


def _exponential_of(steps: tuple[Step, ...]) -> Found | None:
    """``exp`` of scores with these steps, where it makes a softmax of them."""
    if not steps or steps[-1].name not in _LOG_SOFTMAXES:
        return None
    last = steps[-1]
    given = last.args[1] if len(last.args) > 1 else None
    axis = last.kwargs.get("dim", given)
    return None if axis is None else Found(steps[:-1], int(axis))


def _log_softmax_step(call: Call, steps: tuple[Step, ...], other: tuple[Step, ...]) -> Step | None:
    """``scores - scores.logsumexp(axis)`` as a step; None: it takes off something else."""
    total = other[len(steps) :]
    if not _go_on(steps, other) or total[0].name != "logsumexp" or len(total) > 2:
        return None
    axis = _summed_axis(total)
    if axis is None or not _stays_in_place(total, axis):
        return None
    return Step(torch.log_softmax, "log_softmax", (PLACE, axis), {}, tuple(call.result.shape))


def _division_of(
    call: Call, steps: tuple[Step, ...], other: tuple[Step, ...], step: Step
) -> Found | None:
    """Scores divided by what was summed of them; None: by something else.

    Args:
        call: the division, or a multiplication with the reciprocal.
        steps: of what is divided.
        other: of what it is divided by.
        step: the call, done again on the scores.
    """
    total = other[len(steps) :]
    if not _go_on(steps, other) or total[0].name not in _TOTALS:
        return None
    inverted = any(one.name in _RECIPROCALS for one in total)
    if (call.name in _MULTIPLICATIONS) != inverted:
        return None
    axis = _summed_axis(total)
    if axis is None:
        return None
    plain = len(total) <= 2 and _stays_in_place(total, axis)
    if plain and not inverted and steps and steps[-1].name in EXPONENTIALS:
        return Found(steps[:-1], axis)
    return Found(steps, axis, step)


def _normalisation_of(call: Call, steps: tuple[Step, ...], step: Step) -> Found | None:
    """``F.normalize(exponentials, p=1)``; None: of something else, or another norm."""
    if not steps or steps[-1].name not in EXPONENTIALS:
        return None
    order = call.kwargs.get("p", call.args[1] if len(call.args) > 1 else 2)
    return Found(steps, int(_axis_of(call, 2, 1)), step) if order == 1 else None


def _go_on(steps: tuple[Step, ...], other: tuple[Step, ...]) -> bool:
    """Whether the second go on where the first end."""
    n = len(steps)
    return len(other) > n and all(one is two for one, two in zip(steps, other[:n], strict=True))


def _summed_axis(total: tuple[Step, ...]) -> int | None:
    """The one axis that was summed over."""
    first = total[0]
    if first.name == "einsum":
        return _left_out(str(first.args[0]))
    given = first.args[1] if len(first.args) > 1 else None
    axis = first.kwargs.get("dim", given)
    if isinstance(axis, (tuple, list)):
        axis = axis[0] if len(axis) == 1 else None
    return None if axis is None else int(axis)


def _left_out(equation: str) -> int | None:
    labels, _, out = equation.replace(" ", "").partition("->")
    gone = [i for i, label in enumerate(labels) if label not in out]
    return gone[0] if len(gone) == 1 and "." not in labels and "," not in labels else None


def _stays_in_place(total: tuple[Step, ...], axis: int) -> bool:
    """Whether the total has one entry where the scores had an axis."""
    first = total[0]
    before = first.shape
    kept = first.kwargs.get("keepdim", len(first.args) > 2 and first.args[2])
    if kept:
        return len(total) == 1
    n = len(before) + 1
    shape = (*before[: axis % n], 1, *before[axis % n :])
    return len(total) == 2 and total[1].shape == shape and total[1].name in _VIEWS


_VIEWS = frozenset({"unsqueeze", "__getitem__", "view", "reshape", "_unsafe_view"})
