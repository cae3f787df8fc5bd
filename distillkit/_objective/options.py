"""What a term may be given: a loss and its options, a weight, choices among words."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import Tensor, nn

from .._plugins.registry import lookup, provided
from .._plugins.specs import LossSpec, resolve
from .._tables import validated
from ..errors import OptionError, RecipeError, unknown_name
from .align.making import TOKENS
from .schedule import Schedule

Choice = TypeVar("Choice")

VALID = "valid"
"""The parameter by which a loss that consumes tokens is told which of them count."""


def loss_of(loss: str | Callable[..., Tensor]) -> tuple[Callable[..., Tensor], str]:
    """A loss's function, and its signature where it is registered: ``"(v),(v)->()"``.

    Raises:
        UnknownNameError: no such loss.
    """
    if isinstance(loss, str):
        spec = lookup(LossSpec, loss)
        return resolve(spec.function), spec.signature
    for spec in provided(LossSpec).get(getattr(loss, "__name__", ""), {}).values():
        if resolve(spec.function) is loss:
            return loss, spec.signature
    return loss, ""


def accepted_by(function: Callable[..., Tensor] | None) -> frozenset[str]:
    """The names of a loss's parameters."""
    return frozenset() if function is None else frozenset(inspect.signature(function).parameters)


def takes_valid(function: Callable[..., Tensor] | None) -> bool:
    """Whether a loss consumes the tokens and wants to know which of them count."""
    if function is None:
        return False
    parameters = _parameters(function)
    return VALID in parameters and _is_tensor(parameters[VALID].annotation)


def temperature_of(
    function: Callable[..., Tensor] | None, options: Mapping[str, Any]
) -> float | None:
    """The temperature at which a loss compares distributions; None: it is no number."""
    parameter = None if function is None else _parameters(function).get("temperature")
    given = options.get("temperature", 1.0 if parameter is None else parameter.default)
    return float(given) if isinstance(given, Real) else None


def checked_choice(what: str, given: Choice, known: tuple[str, ...]) -> Choice:
    """A choice, if it is no word or a known one.

    Raises:
        UnknownNameError: the nearest words are suggested.
    """
    if isinstance(given, str) and given not in known:
        raise unknown_name(f"choice of `{what}`", given, known)
    return given


def checked_weight(weight: float | Schedule | Mapping[str, Any]) -> float | Schedule:
    """A weight as a number or a schedule.

    Raises:
        OptionError: a number that is negative or not finite.
        RecipeError: keys that make no schedule.
    """
    if isinstance(weight, Schedule):
        return weight
    if isinstance(weight, Mapping):
        return validated(Schedule, weight, "weight", RecipeError)
    if not 0 <= weight < math.inf:
        raise OptionError(f"a weight is a finite number >= 0 or a schedule; got {weight}")
    return weight


def refuse_on_task(*given: Any) -> None:
    """Refuse what means nothing for the student's own loss."""
    if any(given):
        raise RecipeError(
            'a term "task" is the student\'s own loss: it takes a weight and a name, and no `on`, '
            "`inputs`, `mask`, `options`, `align`, `gather`, `teacher` or `ensemble`"
        )


def checked_options(
    term: str,
    function: Callable[..., Tensor] | None,
    options: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    """The options as the loss's own signature allows them."""
    if function is None:
        return {}
    keywords = _keyword_parameters(function)
    for argument in inputs:
        if argument not in keywords:
            raise RecipeError(f"term {term!r}: {unknown_name('input', argument, keywords)}")
    model = options_model(function)
    for option in options:
        if option not in model.model_fields:
            raise RecipeError(
                f"term {term!r}: {unknown_name('option', option, model.model_fields)}"
            )
    missing = [
        n for n, p in keywords.items() if p.default is p.empty and n not in {*options, *inputs}
    ]
    if missing:
        raise RecipeError(f"term {term!r} needs the option or input {missing[0]!r}")
    try:
        checked = model.model_validate(dict(options))
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(map(str, detail["loc"]))
        raise OptionError(
            f"term {term!r}: option {place} = {detail['input']!r}: {detail['msg']}"
        ) from None
    return {name: getattr(checked, name) for name in checked.model_fields_set}


def options_model(function: Callable[..., Tensor]) -> type[BaseModel]:
    """A pydantic model of a loss's keyword-only options, read off its signature."""
    fields: dict[str, Any] = {
        name: (
            parameter.annotation,
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for name, parameter in _keyword_parameters(function).items()
        if not _is_tensor(parameter.annotation)
    }
    config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    name = getattr(function, "__name__", "loss")
    return create_model(f"{name}_options", __config__=config, **fields)


def _keyword_parameters(function: Callable[..., Tensor]) -> dict[str, inspect.Parameter]:
    """What a recipe may give a loss; what is known of the tokens, a term gives by itself."""
    told = {*TOKENS, VALID} if takes_valid(function) else {*TOKENS}
    return {
        name: p.replace(annotation=Any) if p.annotation is p.empty else p
        for name, p in _parameters(function).items()
        if name not in told
    }


def _parameters(function: Callable[..., Tensor]) -> Mapping[str, inspect.Parameter]:
    """The keyword-only parameters of a loss."""
    # the call of a module takes anything, and hands it on
    called = function.forward if isinstance(function, nn.Module) else function
    parameters = inspect.signature(called, eval_str=True).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def _is_tensor(annotation: Any) -> bool:
    return annotation is Tensor or Tensor in getattr(annotation, "__args__", ())
