"""What an adapter file leaves to the configuration of the model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

import distillkit as dk

from .structure import config_of

_NAMED = re.compile(r"(?:(?P<how>sqrt|1 /) )?config\.(?P<path>[\w.<>]+(?: or [\w.<>]+)*)")


def filled(tables: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """An adapter's tables with the numbers of a model's configuration.

    ``"config.a.b"`` is a number of it, ``"config.a or b"`` the first that it has,
    ``"sqrt config.a"`` the side of so many patches in a square and ``"1 / config.a"`` the inverse
    of a ratio. In a list, numbers that it has not are left out.

    Raises:
        SignalError: it has no such number, or the patches are no square.
    """
    return {key: _filled(value, model) for key, value in tables.items()}


def _filled(value: Any, model: nn.Module) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(one, model) for key, one in value.items()}
    if isinstance(value, list):
        runs = [_one_of_list(one, model) for one in value]
        return [found for several in runs for found in several]
    named = _named(value)
    if named is None:
        return value
    found = _number(named, model)
    if found is None:
        raise dk.errors.SignalError(
            f"the configuration of {type(model).__name__} has no {named['path']}: describe the "
            "model in an adapter file of your own, with the number in its place"
        )
    return found


def _one_of_list(value: Any, model: nn.Module) -> list[Any]:
    named = _named(value)
    found = _filled(value, model) if named is None else _number(named, model)
    if found is None or (isinstance(found, dict) and found.get("equals") == []):
        return []  # no such marker in this model, and so no run of them
    return list(found) if named is not None and isinstance(found, list | tuple) else [found]


def _named(value: Any) -> re.Match[str] | None:
    return _NAMED.fullmatch(value) if isinstance(value, str) else None


def _number(named: re.Match[str], model: nn.Module) -> Any:
    for path in named["path"].split(" or "):
        found: Any = config_of(model)
        for part in path.split("."):
            found = _part_of(found, part)
        if found is not None:
            return _converted(named, found, model)
    return None


def _part_of(found: Any, part: str) -> Any:
    if isinstance(found, Mapping):
        return found.get(part)
    return found[int(part)] if part.isdigit() else getattr(found, part, None)


def _converted(named: re.Match[str], number: Any, model: nn.Module) -> Any:
    if named["how"] is None:
        return number
    is_side = named["how"] == "sqrt"
    whole = math.isqrt(number) if is_side else round(1 / number)
    is_exact = whole * whole == number if is_side else whole * number == 1
    if not is_exact:
        raise dk.errors.SignalError(
            f"{named['path']} of {type(model).__name__} is {number}, where {named[0]!r} is no "
            "whole number: describe the model in an adapter file of your own"
        )
    return whole
