"""The options of a loss, read off its signature: which values are allowed, and which are tried.

Bounds are what the annotation states, ``Annotated[float, Field(gt=0)]``. Where it states none, a
range is guessed around the default, and a loss that refuses a guess is not asked about it again.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

AVERAGED = "mean"
"""What ``heads=`` is for a loss of attentions that averages over heads."""

_FARTHER = (1.0, 0.25, 0.5, 2.0, 4.0)
_SHARES = (0.5, 0.1, 0.25, 0.75, 0.9)
_NEAR = 1e-3
_FAR = 100.0


@dataclass(frozen=True)
class Bounds:
    """What an annotation allows: the ends of a range, and whether they belong to it."""

    low: float = -math.inf
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True

    @property
    def stated(self) -> bool:
        """Whether there is any."""
        return self != Bounds()

    def hold(self, value: float) -> bool:
        """Whether a value lies inside; NaN does not."""
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        return above and below


@dataclass(frozen=True)
class Option:
    """An option that the kit draws.

    Attributes:
        name: of the keyword-only parameter.
        default: None where it has none, or where None is the default.
        inside: values away from the ends of its range, those that are tried by most checks.
        edges: values at the ends, or next to an end that does not belong to the range.
        outside: values that must be refused.
        promised: whether the annotation states that these values are allowed; a loss may refuse
            the others with a ``ValueError``.
        bounds: what its annotation states.
    """

    name: str
    default: Any
    inside: tuple[Any, ...]
    edges: tuple[Any, ...] = ()
    outside: tuple[float, ...] = ()
    promised: bool = False
    bounds: Bounds = Bounds()


def options_of(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Option]:
    """The numeric options among keyword-only parameters, and ``heads`` where it may be "mean"."""
    found = {}
    for name, parameter in parameters.items():
        option = _heads(parameter) if name == "heads" else _numeric(parameter)
        if option is not None:
            found[name] = option
    return found


def _heads(parameter: inspect.Parameter) -> Option | None:
    default = None if parameter.default is parameter.empty else parameter.default
    if default is not None:
        return None
    literals = [one for one in _alternatives(parameter.annotation) if get_origin(one) is Literal]
    words = [word for one in literals for word in get_args(one)]
    if literals and AVERAGED not in words:
        return None
    return Option("heads", None, (AVERAGED,), (AVERAGED,), promised=AVERAGED in words)


def _numeric(parameter: inspect.Parameter) -> Option | None:
    """A number, by its annotation or, without one, by its default."""
    default = None if parameter.default is parameter.empty else parameter.default
    kinds = {_plain(one) for one in _alternatives(parameter.annotation)}
    if parameter.annotation is parameter.empty:
        kinds = {type(default)}
    if not kinds & {int, float} or isinstance(default, bool):
        return None
    if default is not None and not (isinstance(default, int | float) and math.isfinite(default)):
        return None
    bounds, whole = _bounds(parameter.annotation), float not in kinds
    if default is None and not bounds.stated:
        return None
    around = _whole(default, bounds) if whole else _around(default, bounds)
    inside = tuple(x for x in dict.fromkeys(around) if bounds.hold(x) and x != default)
    return Option(
        parameter.name,
        default,
        inside,
        tuple(x for x in _edges(default, bounds, whole=whole) if bounds.hold(x)),
        tuple(_outside(bounds)),
        # how many classes or heads there are bounds a whole number, too
        promised=bounds.stated and not whole,
        bounds=bounds,
    )


def _around(default: float | None, bounds: Bounds) -> Iterable[float]:
    """Numbers around a default, well inside of its bounds."""
    low, high = bounds.low, bounds.high
    if math.isfinite(low) and math.isfinite(high):
        return (low + share * (high - low) for share in _SHARES)
    if math.isfinite(low):
        span = default - low if default is not None and default > low else 1.0
        return (low + factor * span for factor in _FARTHER)
    if math.isfinite(high):
        span = high - default if default is not None and default < high else 1.0
        return (high - factor * span for factor in _FARTHER)
    assert default is not None
    if default == 0:
        return (0.1, 0.5)
    if _NEAR <= default < 1:  # perhaps a share
        return (default / 4, default / 2, default + (1 - default) / 4, default + (1 - default) / 2)
    return (factor * default for factor in _FARTHER)


def _whole(default: float | None, bounds: Bounds) -> Iterable[int]:
    """Whole numbers next to a default."""
    first = int(default) if default is not None else math.ceil(max(bounds.low, 1))
    near = (first, first + 1, first - 1, 2 * first)
    return near if bounds.stated else (one for one in near if first <= 0 or one >= 1)


def _edges(default: float | None, bounds: Bounds, *, whole: bool) -> Iterator[float]:
    """The ends of a range; next to those that do not belong to it."""
    ends = (
        (bounds.low, bounds.low_included, 1, bounds.high),
        (bounds.high, bounds.high_included, -1, bounds.low),
    )
    for end, included, towards, other in ends:
        if not math.isfinite(end):
            continue
        span = abs(other - end)
        one_sided = not math.isfinite(span)
        if one_sided:
            span = abs(default - end) if default is not None and default != end else 1.0
        if whole:
            yield int(end) if included else int(end) + towards
        else:
            yield end if included else end + towards * _NEAR * span
        if one_sided and not whole:
            yield end + towards * _FAR * span


def _outside(bounds: Bounds) -> Iterator[float]:
    if math.isfinite(bounds.low):
        yield bounds.low - 1.0 if bounds.low_included else bounds.low
    if math.isfinite(bounds.high):
        yield bounds.high + 1.0 if bounds.high_included else bounds.high
    if bounds.stated:
        yield math.nan


def _bounds(annotation: Any) -> Bounds:
    """The narrowest bounds among the metadata of an annotation, of pydantic or annotated-types."""
    low, high = (-math.inf, True), (math.inf, True)
    for one in _metadata(annotation):
        for kind, included in (("gt", False), ("ge", True)):
            limit = getattr(one, kind, None)
            if isinstance(limit, int | float):
                low = max(low, (float(limit), included), key=lambda end: (end[0], not end[1]))
        for kind, included in (("lt", False), ("le", True)):
            limit = getattr(one, kind, None)
            if isinstance(limit, int | float):
                high = min(high, (float(limit), included), key=lambda end: end)
    return Bounds(low[0], high[0], low[1], high[1])


def _metadata(annotation: Any) -> Iterator[Any]:
    for one in _alternatives(annotation):
        if get_origin(one) is not Annotated:
            continue
        for given in get_args(one)[1:]:
            yield from getattr(given, "metadata", ()) or (given,)
        yield from _metadata(get_args(one)[0])


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, without None; a type alone."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(one for one in get_args(annotation) if one is not type(None))
    return (annotation,)


def _plain(annotation: Any) -> Any:
    """What an annotation says without its metadata."""
    return _plain(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation
