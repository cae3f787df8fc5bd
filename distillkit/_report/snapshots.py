"""Attention over time: what repeats is written once, and many looks become one page's contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .._view.contents import Contents
from .lines import Snapshot


def snapshot_of(contents: Contents, step: int, known: set[str]) -> Snapshot:
    """One look as a line; ``known`` gains the keys of the texts that it holds.

    Args:
        contents: of a page with one checkpoint.
        step: after how many steps.
        known: the keys that earlier lines of the file hold.
    """
    facts = json.loads(json.dumps(contents.facts))
    means = [[layer.pop("means")[0] for layer in one["layers"]] for one in facts["signals"]]
    for name in ("tolerance", "checkpoints"):
        facts.pop(name)
    unchanging = json.dumps(facts, separators=(",", ":"), sort_keys=True)
    keys = [_key(text) for text in contents.texts]
    every = {_key(unchanging): unchanging, **dict(zip(keys, contents.texts, strict=True))}
    new = {key: text for key, text in every.items() if key not in known}
    known.update(new)
    return Snapshot(
        step=step, facts=_key(unchanging), texts=keys, means=means,
        tolerance=contents.tolerance, new=new,
    )  # fmt: skip


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def joined(snapshots: Sequence[Snapshot], texts: Mapping[str, str]) -> tuple[Contents, list[str]]:
    """The contents of one page, whose checkpoints are the steps, and what was left out of it.

    Args:
        snapshots: at least one, by step.
        texts: key -> text, of all lines.
    """
    notes = []
    last = snapshots[-1].facts
    same = [one for one in snapshots if one.facts == last]
    if len(same) < len(snapshots):
        notes.append(
            f"attention of {len(snapshots) - len(same)} earlier looks is of other examples, words, "
            "images or layers than the last, and is not shown"
        )
    facts: dict[str, Any] = json.loads(texts[last])
    places: dict[str, int] = {}

    def place(one: Snapshot, index: int) -> int:
        return places.setdefault(one.texts[index], len(places))

    for number, signal in enumerate(facts["signals"]):
        for depth, layer in enumerate(signal["layers"]):
            (own,) = layer["students"]
            layer["students"] = [place(one, own) for one in same]
            layer["means"] = [one.means[number][depth] for one in same]
            if "teacher" in layer:
                layer["teacher"] = place(same[-1], layer["teacher"])
    facts["checkpoints"] = [f"step {one.step}" for one in same]
    facts["tolerance"] = max(one.tolerance for one in same)
    return Contents(facts, [texts[key] for key in places], facts["tolerance"]), notes
