"""What is known of the tokens of one sequence: words, patches, padding, order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .pictures import PatchesFound, find_patches
from .probe import Probe
from .streams import Streams
from .towers import Tower
from .words import WordsFound, find_words


@dataclass(frozen=True, eq=False)
class Padding:
    """What says which tokens are real.

    Attributes:
        entry: of the batch.
        start: the position of the first token that it is about.
        length: how many it is about.
        by_count: whether the entry says how many are real, and not which.
        side: on which side the padding is, of counts.
    """

    entry: str
    start: int
    length: int
    by_count: bool = False
    side: str = "right"


@dataclass(frozen=True, eq=False)
class Facts:
    """One sequence of tokens.

    Attributes:
        probe: what it is.
        words: the words in it.
        patches: the patches in it.
        padding: what says which tokens are real.
        is_shuffled: whether the image's tokens come in another order in every forward.
        is_joint: whether words and image meet in it.
    """

    probe: Probe
    words: WordsFound | None
    patches: PatchesFound | None
    padding: tuple[Padding, ...]
    is_shuffled: bool
    is_joint: bool

    @property
    def length(self) -> int:
        return self.probe.length


def find_facts(probe: Probe, streams: Streams) -> Facts:
    """Change one thing after the other, and see which tokens of a sequence move.

    Args:
        probe: the sequence.
        streams: every tower, among which one may show the padding of this sequence.
    """
    end = streams.ends[probe.tower][probe.side == "keys"]
    is_joint = streams.chosen.get("joint") is probe.tower
    words = find_words(probe) if is_joint or end.name == "text" else None
    patches = find_patches(probe, end.by_image) if is_joint or end.name == "image" else None
    spans = {(0, probe.length)} | (set() if words is None else {(words.start, words.length)})
    padding = _find_padding(probe, _shows_padding(probe, streams), spans)
    return Facts(probe, words, patches, padding, _is_shuffled(probe, patches), is_joint)


def _is_shuffled(probe: Probe, patches: PatchesFound | None) -> bool:
    """Whether another random state gives the image's tokens another order."""
    if patches is None:
        return False
    batch = probe.entries.batch
    first, second = (probe.watched.forward(batch, seed=seed) for seed in (0, 1))
    return bool((probe.moved_among_all(first, second) > 0).any())


def _shows_padding(probe: Probe, streams: Streams) -> list[Tower]:
    """Towers whose keys are tokens of the same kind and number as this sequence, itself first."""
    if probe.side == "keys" or probe.tower.kind == "self":
        return [probe.tower]
    name = streams.ends[probe.tower][0].name
    alike = (probe.examples, probe.length)
    return [
        tower
        for tower, (_, keys) in streams.ends.items()
        if keys.name == name and (tower.examples, tower.lengths[1]) == alike
    ]


def _find_padding(
    probe: Probe, towers: list[Tower], spans: set[tuple[int, int]]
) -> tuple[Padding, ...]:
    """The entries that take a key away where they say that it is padding."""
    found: list[Padding] = []
    batch = probe.entries.batch
    for tower in towers:
        if found:
            break
        before = probe.watched.forward(batch).entering[tower].kept
        for entry, mask in probe.entries.masks.items():
            if len(mask) == probe.examples and bool((mask[0] != 0).any()):
                column = int((mask[0] != 0).nonzero()[-1])
                changed = mask.clone()
                changed[0, column] = 0
                gone = _gone(probe, tower, before, {**batch, entry: changed})
                if len(gone) == 1 and 0 <= gone[0] - column <= probe.length - mask.shape[1]:
                    found.append(Padding(entry, gone[0] - column, mask.shape[1]))
        for entry, counts in probe.entries.counts.items():
            if len(counts) == probe.examples and 1 < int(counts[0]) <= probe.length:
                fewer = counts.clone()
                fewer[0] -= 1
                gone = _gone(probe, tower, before, {**batch, entry: fewer})
                for span in spans:
                    found += _counted(entry, int(counts[0]), gone, span)
    return tuple(found)


def _gone(probe: Probe, tower: Tower, before: Tensor, batch: Mapping[str, Any]) -> list[int]:
    """The keys of the first example that fewer rows see than before."""
    try:
        after = probe.watched.forward(batch).entering[tower].kept
    except Exception:  # no mask after all: the model refuses others
        return []
    if after.shape != before.shape:
        return []
    fewer = before[0].sum(0) > after[0].sum(0)
    gone: list[int] = fewer.nonzero()[:, 0].tolist()
    return gone


def _counted(entry: str, count: int, gone: list[int], span: tuple[int, int]) -> list[Padding]:
    start, length = span
    if count <= length and gone == [start + count - 1]:
        return [Padding(entry, start, length, by_count=True)]
    if gone == [start + length - count]:
        return [Padding(entry, start, length, by_count=True, side="left")]
    return []


def sees(facts: Facts, rows: Tensor, keys: Tensor) -> bool:
    """Whether some row of a stream sees some key, both boolean ``(b, n)``."""
    batch = facts.probe.entries.batch
    kept = facts.probe.watched.forward(batch).entering[facts.probe.tower].kept
    return bool((kept & rows[:, :, None] & keys[:, None, :]).any())


def image_tokens(facts: Facts) -> Tensor:
    """Which tokens the image moves, ``(b, n)``."""
    patches = facts.patches
    if patches is None:
        return torch.zeros(facts.probe.examples, facts.length, dtype=torch.bool)
    found = patches.picture >= 0
    return found if patches.mixed is None else found | patches.mixed
