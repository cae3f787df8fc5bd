"""A collate function that also brings the teacher's signals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._backbone.batch import NamedTeacher, SideOfBatch
from .._backbone.signals import Signals
from .._objective.teacher import SIGNALS
from ..errors import SignalError


class Joining:
    """A collate function with signals; a class, so that it goes to workers that are spawned.

    Args:
        collate: makes a batch of examples.
        signals: called with a batch and the names of the signals that are wanted.
        names: those signals; none: all.
        entries: the batch entries that are read for them.
        teacher: the name of one of several teachers.
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        signals: Callable[..., Signals],
        names: Sequence[str],
        entries: frozenset[str],
        teacher: str | None = None,
    ) -> None:
        self._collate, self._signals, self._names = collate, signals, tuple(names)
        self._entries, self._teacher = entries, teacher

    @property
    def columns(self) -> list[str]:
        """The columns that a Trainer has to keep: those that are read, and the collator's own."""
        return sorted({*self._entries, *getattr(self._collate, "columns", ())})

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        batch = dict(self._collate(examples))
        named = None if self._teacher is None else NamedTeacher(self._teacher)
        found: Any = self._signals(SideOfBatch(batch, "teacher", teacher=named), *self._names)
        known = batch.get(SIGNALS)
        if self._teacher is not None:
            others = {} if known is None else known
            found = None if isinstance(others, Signals) else {**others, self._teacher: found}
        if found is None or (known is not None and self._teacher is None):
            raise SignalError(
                f"the batch brings {SIGNALS!r} already; of several teachers each names itself, "
                'cache.joining(collate, teacher="a")'
            )
        return {**batch, SIGNALS: found}
