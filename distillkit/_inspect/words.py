"""Which token of a sequence is which word of a batch entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .probe import Probe, codes


@dataclass(frozen=True, eq=False)
class WordsFound:
    """The words in a sequence.

    Attributes:
        entry: the batch entry that holds them.
        words: ``(b, m)``, its vocabulary entries.
        start: the position of the first column in the sequence.
        moved: which words move their token, ``(b, m)``.
        problem: what keeps them from being a run; empty: nothing does.
    """

    entry: str
    words: Tensor
    start: int = 0
    moved: Tensor | None = None
    problem: str = ""

    @property
    def length(self) -> int:
        return self.words.shape[1]

    @property
    def stop(self) -> int:
        return self.start + self.length


def find_words(probe: Probe) -> WordsFound | None:
    """The words that a sequence is made of; None: of none."""
    for entry, words in probe.entries.words.items():
        every = torch.ones_like(words, dtype=torch.bool)
        try:
            moved = probe.moved(_changed(probe, entry, every)) > 0
        except Exception:  # no words after all: the model refuses others
            continue
        if bool(moved.any()):
            return _placed(probe, entry, words, moved)
    return None


def _changed(probe: Probe, entry: str, places: Tensor) -> dict[str, Any]:
    words = probe.entries.tensors[entry]
    return {**probe.entries.batch, entry: probe.entries.other_words(words, places)}


def _placed(probe: Probe, entry: str, words: Tensor, moved: Tensor) -> WordsFound:
    if len(words) != probe.examples:
        said = f"{entry!r} is of {len(words)} texts, and the attention of {probe.examples}"
        return WordsFound(entry, words, problem=said)

    def change(columns: Tensor) -> dict[str, Any]:
        return _changed(probe, entry, columns.expand_as(words))

    column = codes(probe, words.shape[1], change)
    if column is None:
        return WordsFound(entry, words, problem="a word moves several tokens alike")
    places = torch.arange(probe.length).expand_as(column)
    starts = torch.unique((places - column)[moved]).tolist()
    if len(starts) != 1 or starts[0] < 0 or starts[0] + words.shape[1] > probe.length:
        return WordsFound(
            entry, words, problem="the words do not stand in a row, in the order of the entry"
        )
    expected = torch.zeros_like(moved)
    expected[:, starts[0] : starts[0] + words.shape[1]] = probe.entries.are_free(words)
    if bool((moved & ~expected).any()):
        return WordsFound(entry, words, problem="words move tokens that are none of theirs")
    return WordsFound(entry, words, starts[0], moved[:, starts[0] : starts[0] + words.shape[1]])
