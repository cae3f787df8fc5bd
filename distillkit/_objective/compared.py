"""Which signals a term compares: what ``on`` says, for each side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ..errors import RecipeError, did_you_mean

On: TypeAlias = "str | Mapping[str, str] | Sequence[str | Mapping[str, str]]"
"""A signal, ``{"student": ..., "teacher": ...}`` where its name differs, or several of these."""


class Compared(NamedTuple):
    """One signal that a term compares, by its name on each side."""

    student: str
    teacher: str

    def __str__(self) -> str:
        return self.student if self.student == self.teacher else f"{self.student}~{self.teacher}"


def compared_signals(on: On) -> tuple[Compared, ...]:
    """The signals that ``on`` names.

    Raises:
        RecipeError: something that is no name, or a table without both sides.

    Examples:
        >>> [str(one) for one in compared_signals(["logits", {"student": "a", "teacher": "b"}])]
        ['logits', 'a~b']
    """
    if isinstance(on, (str, Mapping)):
        return (_compared(on),)
    if not isinstance(on, Sequence):
        raise RecipeError(_expected(on))
    return tuple(map(_compared, on))


def label_of(signals: Sequence[Compared]) -> str:
    """What a term's name says of its signals."""
    return "+".join(map(str, signals))


def _compared(given: Any) -> Compared:
    if isinstance(given, str):
        return Compared(given, given)
    if not isinstance(given, Mapping) or not all(isinstance(one, str) for one in given.values()):
        raise RecipeError(_expected(given))
    for key in given:
        if key not in Compared._fields:
            raise RecipeError(f"{_expected(given)}: {did_you_mean(str(key), Compared._fields)}")
    missing = [side for side in Compared._fields if side not in given]
    if missing:
        raise RecipeError(f"{_expected(dict(given))}, without the {missing[0]}'s")
    return Compared(**given)


def _expected(given: Any) -> str:
    return (
        '`on` is a signal, "logits"; { student = "hidden.image", teacher = "hidden.vision" } where '
        f"the sides have it under different names; or a list of these; got {given!r}"
    )
