"""A loss under test, and how a check says what is wrong with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .._plugins.registry import lookup
from .._plugins.specs import LossSpec, resolve
from ..errors import ShapeError
from .strategies import Arguments, Draw, made_from, parsed

CLASSES = "v"
"""The axis of classes, by the convention of signatures."""


class CheckFailedError(AssertionError):
    """A check saw something else than it asks for."""


@dataclass(frozen=True)
class Loss:
    """A loss under test: what its spec declares, and the function itself."""

    spec: LossSpec
    function: Callable[..., Tensor]

    @classmethod
    def of(cls, spec: LossSpec | str) -> Loss:
        """From a spec, or from the name of a registered loss."""
        found = lookup(LossSpec, spec) if isinstance(spec, str) else spec
        parsed(found.signature)
        return cls(found, resolve(found.function))

    def __call__(self, given: Arguments, **options: Any) -> Tensor:
        """The loss of one call."""
        value = self.function(*given.student, *given.teacher, **{**given.keywords, **options})
        require(isinstance(value, Tensor), f"returned {type(value).__name__}, not a tensor")
        return value

    @property
    def takes(self) -> dict[str, inspect.Parameter]:
        """The function's keyword-only parameters."""
        function = self.function.forward if isinstance(self.function, nn.Module) else self.function
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def of_attentions(self) -> bool:
        """Whether its inputs are ``Attention``s."""
        return self.spec.signature == "attention" and self.spec.example is None

    @cached_property
    def least(self) -> dict[str, int]:
        """Axis -> 2, where the loss refuses the size 1 with a ``ShapeError``.

        One class has no distribution, and one number no correlation: a loss may say so of an axis
        that it normalises over. Examples and tokens that it returns values of may come alone.
        """
        if self.spec.signature == "attention":
            return {}
        inputs, result = parsed(self.spec.signature)
        axes = {axis for core in inputs for axis in core}
        consumed = sorted(axis for axis in axes if axis not in result or axis == CLASSES)
        return {axis: 2 for axis in consumed if self._refuses_one(axis, axes)}

    def _refuses_one(self, axis: str, axes: set[str]) -> bool:
        """Whether a call whose axes have size 2 is refused once this one has size 1."""
        refused = []
        for size in (2, 1):
            sizes = {**dict.fromkeys(axes, 2), axis: size}
            made = Draw((2,), sizes, "generic", torch.Generator().manual_seed(0))
            try:
                self(made_from(self.spec, made))
                refused.append(False)
            except ShapeError:
                refused.append(True)
            except Exception:  # what else is wrong with it, its checks say
                return False
        return refused == [False, True]

    @property
    def core_rank(self) -> int:
        """How many axes of the value come from the signature."""
        return len(parsed(self.spec.signature)[1])


def require(condition: bool | Tensor, message: str) -> None:  # noqa: FBT001 (an assertion)
    """Fail the check with a message unless the condition holds."""
    if not condition:
        raise CheckFailedError(message)


def require_close(
    found: Tensor, expected: Tensor, what: str, *, rtol: float = 1e-9, atol: float = 1e-10
) -> None:
    """Fail the check unless two tensors agree; NaN agrees with nothing."""
    if found.shape != expected.shape:
        raise CheckFailedError(f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    one, other = found.detach().double(), expected.detach().double()
    if torch.allclose(one, other, rtol=rtol, atol=atol):
        return
    wrong = ~torch.isclose(one, other, rtol=rtol, atol=atol)
    raise CheckFailedError(f"{what}: {float(one[wrong][0]):.6g}, not {float(other[wrong][0]):.6g}")


def gradients(value: Tensor, leaves: list[Tensor], weights: Tensor | None = None) -> list[Tensor]:
    """The gradient of the weighted sum of a value to each leaf; zeros where none arrives."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    total = (value if weights is None else value * weights).sum()
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
