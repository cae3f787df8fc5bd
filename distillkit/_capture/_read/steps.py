"""What is done to scores or probabilities: their axes afterwards, the steps again, or as fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._watch.history import ORDER_KEEPING, REORDERING, positional
from .._watch.sighting import PLACE, Step
from .axes import Axes, Factor, Groups, Unreadable, apply_operation, arrange, factors_of, size_of

# changes precision or memory layout, and nothing that a float32 recomputation sees
_SAME = {"float", "to", "type_as", "contiguous", "double", "half", "bfloat16", "clone", "type"}


def axes_after(axes: Axes, steps: Sequence[Step]) -> Axes:
    """The axes after some steps.

    Raises:
        Unreadable: a step rearranges entries in a way that shapes do not tell.
    """
    for step in steps:
        axes = _after_one(axes, step)
    return axes


def _after_one(axes: Axes, step: Step) -> Axes:
    if step.name == "einsum":
        return _mix_heads(axes, step)
    rest = tuple(a for a in step.args if a is not PLACE)
    args = positional(step.name, rest, step.kwargs)
    return apply_operation(axes, step.name, args, step.shape)


def _mix_heads(axes: Axes, step: Step) -> Axes:
    """After an einsum with weights: a label that takes another's place is of its kind."""
    equation, *operands = step.args
    given = operands[0] if isinstance(operands[0], (tuple, list)) else operands
    inputs, _, out = str(equation).replace(" ", "").partition("->")
    if len(given) == 1 and "..." not in inputs and len(inputs) == len(axes):
        return tuple(axes[inputs.index(label)] for label in out)
    labels = inputs.split(",")
    place = next(i for i, a in enumerate(given) if a is PLACE)
    own = labels[place]
    if len(own) != len(axes) or len(given) != 2 or "..." in inputs or not out:
        raise Unreadable("an einsum changes it in a way that is not known")
    axis_of = dict(zip(own, axes, strict=True))
    gone = [label for label in own if label not in out]
    new = [label for label in out if label not in own]
    if len(gone) != len(new):
        raise Unreadable("an einsum changes it in a way that is not known")
    for label, old in zip(new, gone, strict=True):
        n = step.shape[out.index(label)]
        first = factors_of(axis_of[old])
        axis_of[label] = (
            first if n == size_of(first) else (Factor(n, first[-1].origin, first[-1].role),)
        )
    return tuple(axis_of[label] for label in out)


def replay(steps: Sequence[Step], x: Tensor) -> Tensor:
    for step in steps:
        args = [_substitute(a, x) for a in step.args]
        kwargs = {name: _substitute(a, x) for name, a in step.kwargs.items()}
        x = step.function(*args, **kwargs)
    return x


def _substitute(a: Any, x: Tensor) -> Any:
    if isinstance(a, tuple) and any(part is PLACE for part in a):
        return [x if part is PLACE else part for part in a]
    return x if a is PLACE else a


# steps as the fields of an Attention


@dataclass(frozen=True)
class Fields:
    scale: float = 1.0
    mask: Tensor | None = None
    bias: Tensor | None = None


def fold(steps: Sequence[Step], axes: Axes, groups: Groups) -> Fields | None:
    """Steps as scale, mask and bias; None where one of them does anything else to the scores."""
    scale, mask, bias = 1.0, None, None
    for step in steps:
        after = _after_one(axes, step)
        if not keeps_entries(step):
            factor, added, dropped = _scale_of(step), _bias_of(step), _mask_of(step)
            if factor is not None and bias is None:
                scale *= factor
            elif added is not None:
                term = _fit(added, axes, step, groups)
                bias = term if bias is None else bias + term
            elif dropped is not None:
                kept = ~_fit(dropped, axes, step, groups)
                mask = kept if mask is None else mask & kept
            else:
                return None
        axes = after
    return Fields(scale, mask, bias)


def _fit(x: Tensor, axes: Axes, step: Step, groups: Groups) -> Tensor:
    """A mask or bias of the scores as they lay at its step, for ``(b, h, q, k)``."""
    if x.ndim > len(axes):
        raise Unreadable(f"a term of shape {tuple(x.shape)} widens them at {step.name!r}")
    return arrange(x, axes, groups)


def keeps_entries(step: Step) -> bool:
    """Whether a step leaves every entry as it is, in another place or precision."""
    return step.name in _SAME or step.name in ORDER_KEEPING or step.name in REORDERING


def _scale_of(step: Step) -> float | None:
    """The number that a step multiplies the scores with; None: it does something else."""
    if len(step.args) != 2 or step.kwargs:
        return None
    number = step.args[1] if step.args[0] is PLACE else step.args[0]
    if isinstance(number, Tensor) and number.numel() == 1 and not number.requires_grad:
        number = number.item()
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    if step.name in {"mul", "mul_", "__mul__", "__imul__", "__rmul__", "multiply"}:
        return float(number)
    division = {"div", "div_", "__truediv__", "__itruediv__", "true_divide", "divide"}
    if step.name in division and step.args[0] is PLACE and number != 0:
        return 1.0 / number
    return None


def _bias_of(step: Step) -> Tensor | None:
    """The tensor that a step adds to the scores; None: it does something else."""
    if len(step.args) != 2 or step.kwargs:
        return None
    other = step.args[1] if step.args[0] is PLACE else step.args[0]
    if not isinstance(other, Tensor) or not other.is_floating_point():
        return None
    if step.name in {"add", "add_", "__add__", "__iadd__", "__radd__"}:
        return other
    minus = {"sub", "sub_", "__sub__", "__isub__", "subtract"}
    return -other if step.name in minus and step.args[0] is PLACE else None


def _mask_of(step: Step) -> Tensor | None:
    """The entries that a step fills with the lowest number; None: it does something else."""
    dropped: Any = None
    if step.name in {"masked_fill", "masked_fill_"}:
        given = _named(step, "input", "mask", "value")
        if given.get("input") is not PLACE:
            return None
        dropped, fill = given.get("mask"), given.get("value")
    elif step.name == "where":
        # the method has its tensor first, the function its condition
        is_method = bool(step.args) and step.args[0] is PLACE
        names = ("input", "condition", "other") if is_method else ("condition", "input", "other")
        given = _named(step, *names)
        chosen, other = given.get("input"), given.get("other")
        dropped = given.get("condition")
        if chosen is PLACE and isinstance(dropped, Tensor):
            dropped, fill = ~dropped, other
        elif other is PLACE:
            fill = chosen
        else:
            return None
    else:
        return None
    if isinstance(fill, Tensor) and fill.numel() == 1:
        fill = fill.item()
    # half of float16's lowest number: what any model writes for "never" in any precision. A smaller
    # one, such as -1e4, leaves weight where all scores are low, and is replayed
    lowest = isinstance(fill, (int, float)) and fill <= torch.finfo(torch.float16).min / 2
    return dropped if lowest and isinstance(dropped, Tensor) else None


def _named(step: Step, *names: str) -> dict[str, Any]:
    """The arguments of a step by name; ``names`` are those of its positional ones."""
    return {**dict(zip(names, step.args, strict=False)), **step.kwargs}
