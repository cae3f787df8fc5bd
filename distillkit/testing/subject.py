"""A loss under test, and how a check says what is wrong with it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .._plugins.registry import lookup
from .._plugins.specs import LossSpec, resolve
from .options import AVERAGED, Option, options_of
from .strategies import Arguments, Draw, floating, made_from, parsed

CLASSES = "v"
"""The axis of classes, by the convention of signatures."""


class CheckFailedError(AssertionError):
    """A check saw something else than it asks for."""


@dataclass(frozen=True)
class Loss:
    """A loss under test: what its spec declares, and the function itself.

    A module is called with its parameters in the precision of the inputs, on their device: copies
    of it, so that a test changes nothing of the module itself.
    """

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
        function = self.function_for(given)
        value = function(*given.student, *given.teacher, **{**given.passed, **options})
        require(isinstance(value, Tensor), f"returned {type(value).__name__}, not a tensor")
        return value

    def function_for(self, given: Arguments) -> Callable[..., Tensor]:
        """The function; of a module, its copy for the dtype and the device of a call."""
        if not isinstance(self.function, nn.Module):
            return self.function
        inputs = floating([*given.student, *given.teacher])
        double = any(x.dtype == torch.float64 for x in inputs)
        dtype = torch.float64 if double else torch.float32
        device = inputs[0].device if inputs else torch.device("cpu")
        if (dtype, device) not in self._copies:
            moved = copy.deepcopy(self.function).to(device=device, dtype=dtype)
            self._copies[dtype, device] = moved
        return self._copies[dtype, device]

    @cached_property
    def _copies(self) -> dict[tuple[torch.dtype, torch.device], nn.Module]:
        return {}

    def parameters_for(self, given: Arguments) -> dict[str, nn.Parameter]:
        """The parameters that learn, of the module that a call goes through."""
        function = self.function_for(given)
        if not isinstance(function, nn.Module):
            return {}
        return {name: p for name, p in function.named_parameters() if p.requires_grad}

    def accepted(self, given: Arguments) -> Arguments:
        """The call without those drawn options that no annotation promises and that it refuses."""
        promised = {name: x for name, x in given.options.items() if self.options[name].promised}
        if len(promised) == len(given.options):
            return given
        try:
            self(given)
        except Exception:  # an error is no silence: such a value is not asked for again
            return replace(given, options=promised)
        return given

    @property
    def takes(self) -> dict[str, inspect.Parameter]:
        """The function's keyword-only parameters."""
        function = self.function.forward if isinstance(self.function, nn.Module) else self.function
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}

    @cached_property
    def options(self) -> dict[str, Option]:
        """The options that are drawn: numbers, and ``heads`` of a loss of attentions."""
        found = options_of(self.takes)
        return {n: one for n, one in found.items() if n != "heads" or self.of_attentions}

    def averages_heads(self, given: Arguments) -> bool:
        """Whether a call asks for the average over the heads."""
        return self.of_attentions and given.passed.get("heads") == AVERAGED

    @property
    def of_attentions(self) -> bool:
        """Whether its inputs are ``Attention`` objects."""
        return self.spec.signature == "attention" and self.spec.example is None

    @cached_property
    def least(self) -> dict[str, int]:
        """Axis -> 2, where the loss refuses the size 1 with a ``ValueError``.

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
            except ValueError:
                refused.append(True)
            except Exception:  # what else is wrong with it, its checks say
                return False
        return refused == [False, True]


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


def worst(value: Tensor) -> float:
    """A number of a tensor that is not finite, if there is one, to be shown."""
    wrong = value.detach()[~value.isfinite()]
    return float(wrong[0]) if len(wrong) else 0.0


def gradients(value: Tensor, leaves: list[Tensor], weights: Tensor | None = None) -> list[Tensor]:
    """The gradient of the weighted sum of a value to each leaf; zeros where none arrives."""
    if not leaves or not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    total = (value if weights is None else value * weights).sum()
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
