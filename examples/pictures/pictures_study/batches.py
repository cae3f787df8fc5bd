"""Examples of a task as tensors: texts, scenes and labels, and batches of them.

An example is of one or more pairs of a text and a scene: one pair for a question or a hypothesis,
two for a statement about two scenes, k for a scene with k candidate captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EMPTY, COVERED = -1, -2  # in place of a drawing's number


@dataclass(frozen=True)
class Examples:
    """Examples of one task and split.

    Attributes:
        words: ``(m, n)``: the words of every distinct text, 0 where it has ended.
        text: ``(e, t)``: the texts of each example: one, or its candidates.
        scenes: ``(e, s, c)``: the drawing in each cell of its scenes.
        label: ``(e,)``: the answer, or which candidate is the scene's own.
        vectors: ``(drawings + 2, f)``: what is seen of each drawing, then of a cover and of an
            empty cell, which the numbers -2 and -1 find.
    """

    words: Tensor
    text: Tensor
    scenes: Tensor
    label: Tensor
    vectors: Tensor

    def __len__(self) -> int:
        return len(self.label)

    @property
    def pairs(self) -> int:
        """Pairs of a text and a scene in each example."""
        return max(self.text.shape[1], self.scenes.shape[1])

    def pairs_of(self, index: Tensor) -> Tensor:
        """The numbers of the pairs of some examples, one example after another."""
        return (index[:, None] * self.pairs + torch.arange(self.pairs)).flatten()


def with_marks(vectors: Tensor) -> Tensor:
    """Vectors of drawings ``(n, f)`` as ``(n + 2, f + 2)``, with marks for cover and empty."""
    drawings = torch.cat([vectors, vectors.new_zeros(len(vectors), 2)], 1)
    marks = torch.zeros(2, drawings.shape[1])
    size = vectors.norm(dim=1).mean()  # as long as the others
    marks[0, -2], marks[1, -1] = size, size
    return torch.cat([drawings, marks])


def batch_of(examples: Examples, index: Tensor) -> dict[str, Any]:
    """Some examples as a batch in which every distinct text and every scene comes once."""
    chosen, scenes = examples.text[index], examples.scenes[index]
    count, pairs = len(index), examples.pairs
    texts, text = chosen.unique(return_inverse=True)
    words = examples.words[texts]
    image = torch.arange(count * scenes.shape[1]).view(count, -1)
    batch = {
        "words": words,
        "word_mask": words > 0,
        "cells": examples.vectors[scenes.flatten(0, 1)],
        "place": torch.arange(scenes.shape[1]).repeat(count),
        "text": text.expand(count, pairs).flatten(),
        "image": image.expand(count, pairs).flatten(),
        "label": examples.label[index],
    }
    if chosen.shape[1] > 1:
        batch["candidates"] = pairs
    return batch
