"""Retrieval: drawings and the names of what they show."""

from __future__ import annotations

import numpy as np

from .examples import Example
from .pictures import Pictures
from .scenes import EMPTY


def answers(pictures: Pictures) -> tuple[str, ...]:
    """The names of all concepts, in the order of the table."""
    return tuple(concept.name for concept in pictures.table)


def make_names(pictures: Pictures, split: str, grid: int) -> list[Example]:
    """Every drawing of a split, in the first cell of a scene, with its concept's name."""
    found = []
    for number in pictures.of_split(split):
        cells = np.full((1, grid * grid), EMPTY)
        cells[0, 0] = number
        concept = int(pictures.concepts[number])
        found.append(Example(cells, pictures.table[concept].name, concept, "name"))
    return found
