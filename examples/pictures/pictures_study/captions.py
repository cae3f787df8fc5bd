"""Scenes with captions, to pre-train on: what is in them, by name or by class.

They are image-text pairs as those that ViLT is pre-trained on, and know no task: a caption says
what a scene of training drawings shows, and seven others are each wrong in one thing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from drawings import EMPTY, Concept, Pictures

from .batches import Examples
from .world import SEED, World

CANDIDATES = 8
LEAST, MOST = 2, 4  # drawings in a scene


def captions_of(world: World, pictures: Pictures, count: int) -> Examples:
    """So many scenes of training drawings, each with its own caption and seven wrong ones."""
    random = np.random.default_rng(SEED)
    rows, columns = world.grid
    cells = rows * columns
    numbers = pictures.of_split("train")
    numbers = [n for n in numbers if pictures.table[pictures.concepts[n]].classes]
    concepts = [pictures.table[pictures.concepts[n]] for n in numbers]
    scenes, captions = [], []
    for _ in range(count):
        size = int(random.integers(LEAST, min(MOST, cells) + 1))
        drawn = random.choice(len(numbers), size, replace=False)
        scene = np.full(cells, EMPTY)
        scene[random.permutation(cells)[:size]] = [numbers[i] for i in drawn]
        scenes.append(scene)
        shown = [concepts[i] for i in drawn]
        own = [_phrase(concept, random) for concept in shown]
        true = {phrase for concept in shown for phrase in _phrases(concept)}
        captions += [" ".join(own)]
        captions += [_wrong(own, true, concepts, random) for _ in range(CANDIDATES - 1)]
    texts = sorted(set(captions))
    place = {text: number for number, text in enumerate(texts)}
    text = torch.tensor([place[caption] for caption in captions]).view(count, CANDIDATES)
    return Examples(
        world.encode(texts), text, torch.from_numpy(np.stack(scenes))[:, None],
        torch.zeros(count, dtype=torch.long), world.vectors,
    )  # fmt: skip


def _phrases(concept: Concept) -> tuple[str, ...]:
    return (concept.name, *concept.classes)


def _phrase(concept: Concept, random: np.random.Generator) -> str:
    """Its name, or one of its classes."""
    if random.random() < 0.5:
        return concept.name
    return concept.classes[random.integers(len(concept.classes))]


def _wrong(
    own: Sequence[str],
    true: set[str],
    concepts: Sequence[Concept],
    random: np.random.Generator,
) -> str:
    """The caption with something that the scene does not show in place of one thing."""
    while True:
        other = _phrase(concepts[random.integers(len(concepts))], random)
        if other not in true:
            changed = list(own)
            changed[random.integers(len(own))] = other
            return " ".join(changed)
