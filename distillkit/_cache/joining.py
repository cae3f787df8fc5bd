"""A collate function that also brings the teacher's signals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._backbone.signals import Signals
from .._objective.teacher import SIGNALS


class Joining:
    """A collate function with signals; a class, so that it goes to workers that are spawned.

    Args:
        collate: makes a batch of examples.
        signals: called with a batch and the names of the signals that are wanted.
        names: those signals; none: all.
        entries: the batch entries that are read for them.
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        signals: Callable[..., Signals],
        names: Sequence[str],
        entries: frozenset[str],
    ) -> None:
        self._collate, self._signals, self._names = collate, signals, tuple(names)
        self._entries = entries

    @property
    def columns(self) -> list[str]:
        """The columns that a Trainer has to keep: those that are read, and the collator's own."""
        return sorted({*self._entries, *getattr(self._collate, "columns", ())})

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        batch = dict(self._collate(examples))
        return {**batch, SIGNALS: self._signals(batch, *self._names)}
