"""Which tower is which stream: by what its queries and its keys move with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..testing.movement import how_far
from .entries import Entries
from .probe import Probe
from .towers import Forward, Tower, Watched

LEARNED = "learned"
"""The name of tokens that no input moves: learned queries."""


@dataclass(frozen=True, eq=False)
class End:
    """The queries or keys of a tower, and what moves them while everything attends.

    Attributes:
        name: ``joint``, ``text``, ``image`` or ``learned``.
        by_image: ``(b, n)``: which tokens another image moves.
    """

    name: str
    by_image: Tensor


@dataclass(frozen=True, eq=False)
class Streams:
    """The streams of a file.

    Attributes:
        chosen: stream -> its tower.
        ends: tower -> its queries and its keys.
        entries: of the batch, with the placeholders of images that were seen.
        left_out: towers of no stream, and what they are.
    """

    chosen: Mapping[str, Tower]
    ends: Mapping[Tower, tuple[End, End]]
    entries: Entries
    left_out: Sequence[tuple[Tower, str]] = field(default_factory=tuple)


def find_streams(watched: Watched, entries: Entries) -> Streams:
    """Name the towers of a model, and choose those that a file is about."""
    before = watched.forward(entries.batch)
    by_image = _forward(watched, entries.other_images()) if entries.images else None
    entries = entries.with_placeholders(_moved_by_image(watched, before, by_image))
    by_words = []
    for entry, words in entries.words.items():
        everywhere = torch.ones_like(words, dtype=torch.bool)
        changed = {**entries.batch, entry: entries.other_words(words, everywhere)}
        by_words.append(_forward(watched, changed))
    ends = {}
    for tower in watched.readable:
        sides = []
        for side in ("queries", "keys"):
            probe = Probe(watched, entries, tower, side)
            sides.append(_end(probe, before, by_image, by_words))
        ends[tower] = (sides[0], sides[1])
    chosen = _chosen(ends)
    if "text" in chosen and _holds_placeholders(chosen["text"], entries):
        chosen = {"joint": chosen["text"]}
    taken = set(chosen.values())
    left_out = [
        (tower, tower.problem or f"{_named(tower, ends[tower])} stream")
        for tower in watched.towers
        if tower not in taken
    ]
    return Streams(chosen, ends, entries, left_out)


def _moved_by_image(watched: Watched, before: Forward, after: Forward | None) -> list[Tensor]:
    """Which tokens another image moves, of every tower's queries."""
    if after is None:
        return []
    pairs = ((before.entering[tower], after.entering[tower]) for tower in watched.readable)
    return [
        how_far(one.query, other.query).cpu() > 0
        for one, other in pairs
        if one.query.shape == other.query.shape
    ]


def _holds_placeholders(tower: Tower, entries: Entries) -> bool:
    """Whether words of a tower are, by the model's config, places of an image's tokens."""
    for words in entries.words.values():
        if words.shape == (tower.examples, tower.lengths[0]):
            return bool(torch.isin(words, entries.placeholders.to(words)).any())
    return False


def _forward(watched: Watched, batch: Mapping[str, object]) -> Forward | None:
    """A forward of a changed batch; None, where the model cannot run it."""
    try:
        return watched.forward(batch)
    except Exception:  # an entry that looked like words and is none
        return None


def _end(
    probe: Probe, before: Forward, by_image: Forward | None, by_words: Sequence[Forward | None]
) -> End:
    nothing = torch.zeros(probe.examples, probe.length, dtype=torch.bool)
    image = nothing if by_image is None else probe.moved_among_all(before, by_image) > 0
    text = nothing
    for words, after in zip(probe.entries.words.values(), by_words, strict=True):
        if after is not None and words.shape[1] <= probe.length:  # fewer tokens: a summary of them
            text = text | (probe.moved_among_all(before, after) > 0)
    mixed = bool((image & text).any())
    if not mixed and (probe.tower.kind == "self" or not bool(text.any())):
        return End(_name(text, image), image)
    alone_image, alone_text = _alone(probe, nothing)
    if bool((alone_image | alone_text).any()):
        return End(_name(alone_text, alone_image), image)
    # attention has brought the words into tokens that are none of theirs
    return End(_name(nothing, image), image) if probe.is_quiet else End(_name(text, image), image)


def _alone(probe: Probe, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens an image moves, and which other words do, where nothing else attends."""
    entries = probe.entries
    image, text = nothing, nothing
    if entries.images:
        image = probe.moved(entries.other_images()) > 0
    for entry, words in entries.words.items():
        if words.shape[1] > probe.length:
            continue
        everywhere = torch.ones_like(words, dtype=torch.bool)
        changed = {**entries.batch, entry: entries.other_words(words, everywhere)}
        try:
            text = text | (probe.moved(changed) > 0)
        except Exception:  # as above: no words after all
            continue
    return image, text


def _name(text: Tensor, image: Tensor) -> str:
    if bool(text.any()) and bool(image.any()):
        return "joint"
    if bool(text.any()):
        return "text"
    return "image" if bool(image.any()) else LEARNED


def _named(tower: Tower, ends: tuple[End, End]) -> str:
    queries, keys = (end.name for end in ends)
    return queries if tower.kind == "self" else f"{queries}_to_{keys}"


def _chosen(ends: Mapping[Tower, tuple[End, End]]) -> dict[str, Tower]:
    """The streams in which words meet the image; where there are none, the two towers."""
    by_name: dict[str, list[Tower]] = {}
    for tower, pair in ends.items():
        by_name.setdefault(_named(tower, pair), []).append(tower)
    for wanted in (("joint",), ("text_to_image", "image_to_text"), ("text", "image")):
        found = {name: _deepest(by_name[name]) for name in wanted if name in by_name}
        if found:
            return found
    return {}


def _deepest(towers: Sequence[Tower]) -> Tower:
    """The one of most layers; of equals the last, which is nearer to the output."""
    return max(reversed(towers), key=lambda tower: len(tower.names))
