"""One end of a tower, its queries or its keys, and which of its tokens a change moves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..testing.movement import how_far
from .entries import Entries
from .towers import Forward, Tower, Watched


@dataclass(frozen=True, eq=False)
class Probe:
    """The queries or the keys of a tower, while things are changed.

    Attributes:
        watched: the model.
        entries: its batch.
        tower: which attention.
        side: ``"queries"`` or ``"keys"``.
    """

    watched: Watched
    entries: Entries
    tower: Tower
    side: str

    @property
    def examples(self) -> int:
        return self.tower.examples

    @property
    def length(self) -> int:
        return self.tower.lengths[self.side == "keys"]

    @functools.cached_property
    def _quiet(self) -> tuple[Forward, Tower | None]:
        """A forward with every other attention silenced; with them, where the model cannot."""
        batch = self.entries.batch
        try:
            return self.watched.forward(batch, alone=self.tower), self.tower
        except Exception:  # a stranger's model may not take zeros
            return self.watched.forward(batch), None

    @property
    def is_quiet(self) -> bool:
        """Whether other attentions could be silenced."""
        return self._quiet[1] is not None

    def moved(self, batch: Mapping[str, Any]) -> Tensor:
        """How far each token moves with another batch, ``(b, n)``; no other attention mixes."""
        before, alone = self._quiet
        after = self.watched.forward(batch, alone=alone)
        return self._between(before, after)

    def moved_among_all(self, before: Forward, after: Forward) -> Tensor:
        """The same between two forwards in which everything attends."""
        return self._between(before, after)

    def _between(self, before: Forward, after: Forward) -> Tensor:
        one, two = (x.entering[self.tower].of(self.side) for x in (before, after))
        if one.shape != two.shape:
            return torch.zeros(one.shape[0], one.shape[2])
        return how_far(one, two).cpu()


Change = Callable[[Tensor], dict[str, Any]]
"""The batch with the numbered places changed that are true: boolean ``(count,)``."""


def codes(probe: Probe, count: int, change: Change) -> Tensor | None:
    """Which of the numbered places each token is, ``(b, n)``; -1: none of them.

    Instead of one after the other, all places are changed at once whose number has a bit set, and
    all others; a token is where it moves farther. None: that cannot be told, since a place moves
    several tokens alike.
    """
    numbers = torch.arange(count)
    found = torch.zeros(probe.examples, probe.length, dtype=torch.long)
    moved_by_any = torch.zeros(probe.examples, probe.length, dtype=torch.bool)
    for bit in range(max(1, (count - 1).bit_length())):
        has_bit = (numbers >> bit) & 1 == 1
        by_set = probe.moved(change(has_bit)) if bool(has_bit.any()) else 0 * found.float()
        by_clear = probe.moved(change(~has_bit))
        moved_by_any |= (by_set > 0) | (by_clear > 0)
        found |= (by_set > by_clear).long() << bit
    found = torch.where(moved_by_any, found, -1)
    return found if int(found.max()) < count else None
