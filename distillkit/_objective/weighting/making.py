"""The weights of an objective from what a recipe says."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch import nn

from ..._plugins.registry import lookup
from ..._plugins.specs import WeightingSpec, resolve
from ...errors import RecipeError, unknown_name
from .protocol import Reads
from .weights import LearnedWeights, SettledWeights

Weights = LearnedWeights | SettledWeights

_OWN = ("at", "now")  # options of every weighting by gradients


def static(terms: Sequence[str]) -> None:
    """The weights that the terms say themselves, numbers and schedules, and nothing else."""
    del terms


def make_weights(given: str | Mapping[str, Any], terms: Sequence[str]) -> Weights | None:
    """The weights of a name, or of a table with a ``name`` and its options; None: the terms' own.

    Raises:
        UnknownNameError: no such weighting.
        RecipeError: options that its factory does not take; a factory that makes no weighting.
    """
    table: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given)
    if not isinstance(table.get("name"), str):
        raise RecipeError(f"a weighting is a name or a table with a `name`; got {given!r}")
    return weights_of(lookup(WeightingSpec, table.pop("name")), terms, table)


def weights_of(
    spec: WeightingSpec, terms: Sequence[str], options: Mapping[str, Any]
) -> Weights | None:
    """The weights of a spec, which need not be registered.

    Raises:
        RecipeError: as of :func:`make_weights`.
    """
    name = spec.name
    own = {key: options[key] for key in _OWN if key in options}
    given = {key: value for key, value in options.items() if key not in _OWN}
    made = _called(spec, tuple(terms), given)
    if hasattr(made, "settle"):
        reads = getattr(made, "reads", None)
        if reads not in get_args(Reads):
            raise RecipeError(
                f'weighting {name!r}: `reads` is "losses" or "gradients"; got {reads!r}'
            )
        if own and reads == "losses":
            raise RecipeError(
                f"weighting {name!r} reads losses alone: `{next(iter(own))}` is an option of those "
                "that read gradients"
            )
        return SettledWeights(name, terms, made, **_checked(name, own))
    if own:
        raise RecipeError(
            f"weighting {name!r} reads no gradients: it takes no option `{next(iter(own))}`"
        )
    if made is None:
        return None
    if isinstance(made, nn.Module) and any(True for _ in made.parameters()):
        return LearnedWeights(name, terms, made)
    raise RecipeError(
        f"weighting {name!r}: its factory returned {made!r}; it returns an object with `reads`, "
        "`start()` and `settle(step, state)`, or an nn.Module with parameters that is called with "
        "the places of terms"
    )


def _called(spec: WeightingSpec, terms: tuple[str, ...], options: Mapping[str, Any]) -> Any:
    factory = resolve(spec.factory)
    signature = inspect.signature(factory)
    known = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for option in options:
        if option not in known and not open_ended:
            unknown = unknown_name("option", option, [*known, *_OWN])
            raise RecipeError(f"weighting {spec.name!r}: {unknown}")
    try:
        signature.bind(terms, **options)
    except TypeError as error:
        raise RecipeError(
            f"weighting {spec.name!r}: {error}. A factory is called with the names of the terms "
            "and, by keyword, the options of the recipe's `weighting`"
        ) from None
    return factory(terms, **options)


def _checked(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    at, now = own.get("at"), own.get("now", False)
    if not (at is None or (isinstance(at, str) and at)):
        raise RecipeError(
            f"weighting {name!r}: `at` is a pattern over the student's modules; got {at!r}"
        )
    if not isinstance(now, bool):
        raise RecipeError(f"weighting {name!r}: `now` is true or false; got {now!r}")
    return {"at": at, "now": now}
