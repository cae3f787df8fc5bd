"""A term's tensors from all processes, for a loss that compares examples with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..errors import RecipeError
from ..losses._gathering import Shape, gather_padded, processes, shapes_of_ranks
from .comparison import Sides
from .counting import TermInputs

_alone: ContextVar[bool] = ContextVar("alone", default=False)

_LABEL = -100  # an integer entry that no loss counts


@contextmanager
def alone() -> Iterator[None]:
    """Gather nothing: a look at one process's batch, for which the others do not wait."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def ranks() -> int:
    """How many processes' examples are gathered; 1: nothing is."""
    return 1 if _alone.get() else processes()


def check_gather(
    term: str, loss: str, signature: str, asked: Sequence[str] = (), *, weighs: bool = False
) -> None:
    """Refuse to gather for a term of which other processes' examples tell nothing.

    Args:
        term: what errors call it.
        loss: its loss's name.
        signature: of the loss, where it is registered.
        asked: the parameters by which the loss asks which tokens it compares.
        weighs: whether the term weighs tokens.

    Raises:
        RecipeError: the loss, and why it has no use for other processes' examples.
    """
    _check_joins_examples(term, loss, signature)
    if asked:
        raise RecipeError(
            f"term {term!r}: gather = true joins tensors, and {loss!r} asks which tokens they are "
            f"({asked[0]}), which is known of this process's examples alone"
        )
    if weighs:
        raise RecipeError(
            f"term {term!r}: gather = true is of losses that compare examples, and "
            "`token_weights` weigh the tokens of each"
        )


def _check_joins_examples(term: str, loss: str, signature: str) -> None:
    """Refuse to gather for a loss whose value of an example depends on that example alone.

    A loss may compare examples where every argument begins with one and the same of two axes, the
    examples of ``(n, d)``. Of a function that nobody declared, its author knows.

    Raises:
        RecipeError: the loss, and why it has no use for other processes' examples.
    """
    inputs = signature.partition("->")[0]
    if not inputs:
        return
    cores = [one.strip("()").split(",") for one in inputs.split("),(")]
    if inputs == "attention" or any(len(c) != 2 or c[0] != cores[0][0] for c in cores):
        raise RecipeError(
            f"term {term!r}: gather = true does nothing for {loss!r}, {signature}: its value of an "
            "example is the same whatever the others are, so that ranks add up without it; leave "
            "it out"
        )


def check_gatherable(term: str, declared: str, sides: Sides) -> None:
    """Refuse signals of which a loss does not compare examples, or that cannot be joined.

    Raises:
        RecipeError: attentions; a signal ``(b, n, d)`` of a loss that consumes n and d.
    """
    for one in (*sides[0], *sides[1]):
        if not isinstance(one, Tensor):
            raise RecipeError(
                f"term {term!r}: gather = true joins tensors of examples, and this signal is an "
                "attention"
            )
        if declared and one.ndim > 2:
            raise RecipeError(
                f"term {term!r}: gather = true does nothing for a signal {tuple(one.shape)}: of "
                f"more than two axes {declared} compares the tokens of each example, not the "
                "examples; leave it out, or take a signal with one vector for each, (b, d)"
            )


class Gathering:
    """What one term gathers in a step; every process does the same in the same order.

    Args:
        sides: of the first layer, aligned: they say how many examples each process has.
        step: what the term was given on this process.
    """

    def __init__(self, sides: Sides, step: TermInputs) -> None:
        first = sides[0][0]
        shapes = _shapes(first)
        self._examples = [_there(shape)[0] for shape in shapes]
        tokens = [_there(shape)[1:-1] for shape in shapes]
        layout = step.layout
        if layout is None and len(set(tokens)) > 1:
            # what is padded to other processes' length does not count
            layout = first.new_ones(first.shape[:-1], dtype=torch.bool)
        self.step = TermInputs(
            self._mask(layout, first),
            self._mask(step.entry, first),
            (),
            self._arguments(step.arguments, first.device),
        )

    def sides(self, sides: Sides) -> Sides:
        """Every signal of both sides, of all processes' examples."""
        student, teacher = ([_padded(x, _shapes(x), 0) for x in side] for side in sides)
        return student, teacher

    def _mask(self, mask: Tensor | None, first: Tensor) -> Tensor | None:
        """A mask of all examples; a process without one counts everything."""
        shapes = _shapes(mask, first.device)
        known = next((shape for shape in shapes if shape is not None), None)
        if known is None:
            return None
        if None in shapes:
            if mask is None:
                mask = first.new_ones(first.shape[: len(known)], dtype=torch.bool)
            shapes = _shapes(mask)
        assert mask is not None
        joined: Tensor = _padded(mask.to(first.device), shapes, 0)
        return joined

    def _arguments(self, given: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """The loss's arguments: those with an entry for each example are gathered."""
        found = dict(given)
        for name in sorted(given):
            value = given[name]
            shapes = _shapes(value if isinstance(value, Tensor) else None, device)
            if all(
                shape and shape[0] == n for shape, n in zip(shapes, self._examples, strict=True)
            ):
                found[name] = _padded(value, shapes, _filling(value.dtype))
        return found


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _shapes(x: Tensor | None, device: torch.device | None = None) -> list[Shape | None]:
    if device is None:
        assert x is not None
        device = x.device
    return shapes_of_ranks(x, device)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _padded(x: Tensor, shapes: Sequence[Shape | None], fill: float) -> Tensor:
    return gather_padded(x, shapes, fill)


def _there(shape: Shape | None) -> Shape:
    assert shape is not None
    return shape


def _filling(dtype: torch.dtype) -> int:
    """What stands for a position that another process has and this one has not."""
    return 0 if dtype == torch.bool or dtype.is_floating_point else _LABEL
