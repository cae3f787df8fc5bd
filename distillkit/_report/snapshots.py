"""Attention over time: what repeats is written once, and many looks become one page's contents."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .._view.coding import Layer
from .._view.contents import Contents, Scene, contents_of, followed
from .._view.maps import Distances, Maps
from .._view.steps import COUNTS, EXACT, Errors, Steps, errors_of, numbers_of, steps_of
from .lines import Snapshot

_LEVELS = 126  # how finely attention is told apart: a file holds many looks


def snapshot_of(scene: Scene, step: int, known: set[str]) -> Snapshot:
    """One look as a line; ``known`` gains the keys of the texts that it holds.

    Args:
        scene: what a page with one checkpoint shows.
        step: after how many steps.
        known: the keys that earlier lines of the file hold.
    """
    facts = json.loads(json.dumps(scene.facts))
    means = [[layer.pop("means")[0] for layer in one["layers"]] for one in facts["signals"]]
    facts.pop("checkpoints")
    facts["strides"] = [layer.strides for layer in scene.layers]
    unchanging = json.dumps(facts, separators=(",", ":"), sort_keys=True)
    coded = [steps_of(*layer.maps, _LEVELS) for layer in scene.layers]
    texts = [_text_of(*both) for both in zip(coded, scene.layers, strict=True)]
    off = [
        errors_of(steps, layer.maps.probabilities)
        for steps, layer in zip(coded, scene.layers, strict=True)
    ]
    keys = [key_of(text) for text in texts]
    every = {key_of(unchanging): unchanging, **dict(zip(keys, texts, strict=True))}
    new = {key: text for key, text in every.items() if key not in known}
    known.update(new)
    return Snapshot(
        step=step, facts=key_of(unchanging), texts=keys, means=means,
        errors=_worst(off), new=new,
    )  # fmt: skip


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
    strides = facts.pop("strides")
    layers: list[Layer] = []

    def read(one: Snapshot, index: int) -> Layer:
        return _layer_of(texts[one.texts[index]])._replace(strides=tuple(strides[index]))

    for number, signal in enumerate(facts["signals"]):
        for depth, layer in enumerate(signal["layers"]):
            (own,) = layer["students"]
            before: list[Layer] = []
            if "teacher" in layer:
                before = [read(same[-1], layer["teacher"])._replace(family=f"{number}, teacher")]
                layer["teacher"] = len(layers)
                layers += before
            layer["students"] = []
            layer["means"] = [one.means[number][depth] for one in same]
            for one in same:
                layer["students"].append(len(layers))
                made = followed(read(one, own), str(number), before, len(layers))
                layers.append(made)
                before = [made]
    facts["checkpoints"] = [f"step {one.step}" for one in same]
    return contents_of(Scene(facts, layers), _worst([one.errors for one in same])), notes


def _worst(errors: Sequence[Errors]) -> Errors:
    return Errors(*(max(both) for both in zip(EXACT, *errors, strict=True)))


def key_of(text: str) -> str:
    """What a text is called, by which one that is damaged is known."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text_of(steps: Steps, layer: Layer) -> str:
    """One layer as text: arrays of numpy, deflated."""
    arrays: dict[str, Any] = {
        "codes": steps.codes,
        "exponents": steps.exponents,
        "states": steps.states,
    }
    if layer.distances is not None:
        arrays["kl"] = layer.distances.kl.numpy()
        arrays["compared"] = layer.distances.counts.numpy()
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return base64.b64encode(file.getvalue()).decode()


def _layer_of(text: str) -> Layer:
    """The layer that a text holds; nothing of it is run."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as held:
        steps = Steps(held["codes"], held["exponents"], held["states"], _LEVELS)
        maps = Maps(
            torch.from_numpy(numbers_of(steps)), torch.from_numpy(steps.states & COUNTS != 0)
        )
        distances = None
        if "kl" in held:
            distances = Distances(*(torch.from_numpy(held[name]) for name in ("kl", "compared")))
    return Layer(maps, distances)
