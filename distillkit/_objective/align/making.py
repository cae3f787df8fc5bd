"""An aligner from what a recipe says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from torch import nn

from ..._backbone.signals import TokenAxes
from ..._plugins.registry import lookup
from ..._plugins.specs import AlignerSpec, resolve
from ...errors import RecipeError

AxesOfSides: TypeAlias = "tuple[TokenAxes, TokenAxes]"

TOKENS = ("student_tokens", "teacher_tokens")
"""The parameters by which an aligner or a loss asks for what is known of the tokens."""


def make_aligner(given: str | Mapping[str, Any]) -> nn.Module:
    """The aligner of a name, or of a table with a ``name`` and its options, as a module.

    Raises:
        UnknownNameError: no such aligner.
        RecipeError: options that its factory does not take; a factory that makes no aligner.
    """
    table = {"name": given} if isinstance(given, str) else dict(given)
    if "name" not in table:
        raise RecipeError(f"an aligner is a name or a table with a `name`; got {given!r}")
    spec = lookup(AlignerSpec, table.pop("name"))
    return _as_module(_called(spec, table), make_aligner, (given,))


def aligner_of(spec: AlignerSpec, options: Mapping[str, Any]) -> nn.Module:
    """The aligner of a spec, which need not be registered, as a module.

    Raises:
        RecipeError: as of :func:`make_aligner`.
    """
    return _as_module(_called(spec, options), aligner_of, (spec, dict(options)))


def _called(spec: AlignerSpec, options: Mapping[str, Any]) -> Any:
    factory = resolve(spec.factory)
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise RecipeError(
            f"aligner {spec.name!r}: {error}. A factory is called with the options of the term's "
            "`align` and returns what is called with (student, teacher)"
        ) from None
    made = factory(**options)
    if not callable(made):
        raise RecipeError(
            f"aligner {spec.name!r}: its factory returned {made!r}; it returns a callable "
            "(student, teacher) -> (student, teacher)"
        )
    return made


def _as_module(made: Any, make: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    return made if isinstance(made, nn.Module) else _Untrained(made, make, arguments)


class _Untrained(nn.Module):
    """An aligner without parameters, as a module; a pickle says how it is made again."""

    def __init__(
        self,
        function: Callable[..., tuple[Any, Any]],
        make: Callable[..., nn.Module],
        arguments: tuple[Any, ...],
    ) -> None:
        super().__init__()
        self.function, self._make, self._arguments = function, make, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._make, self._arguments

    def forward(self, student: Any, teacher: Any, **tokens: Any) -> tuple[Any, Any]:
        return self.function(student, teacher, **tokens)


def asked_tokens(function: nn.Module | Callable[..., Any]) -> tuple[str, ...]:
    """The parameters by which an aligner, or a loss, asks for what is known of the tokens."""
    if isinstance(function, _Untrained):
        function = function.function
    if isinstance(function, nn.Module):
        function = function.forward
    parameters = inspect.signature(function).parameters
    return tuple(name for name in TOKENS if name in parameters)


def told_tokens(asked: Collection[str], axes: AxesOfSides) -> dict[str, TokenAxes]:
    """The arguments for those parameters."""
    return {name: side for name, side in zip(TOKENS, axes, strict=True) if name in asked}


def axes_after(aligner: nn.Module, axes: AxesOfSides) -> AxesOfSides:
    """The known facts about the tokens that an aligner returns.

    They are what its method ``align_tokens`` says; one without it keeps the tokens as they are.
    """
    inner = aligner.function if isinstance(aligner, _Untrained) else aligner
    said: Callable[..., AxesOfSides] | None = getattr(inner, "align_tokens", None)
    return axes if said is None else said(*axes)
