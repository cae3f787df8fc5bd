"""An example, and a task: its examples and the names of its answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Example:
    """A text about one or two scenes.

    Attributes:
        scenes: ``(1 or 2, cells)`` numbers of drawings; -1 is an empty cell, -2 a covered one.
        text: a question, hypothesis, statement or name.
        label: an index into the answers of the task.
        kind: of the text.
    """

    scenes: np.ndarray
    text: str
    label: int
    kind: str


@dataclass(frozen=True, eq=False)
class Task:
    """The examples of one split of a task.

    Attributes:
        name: ``"vqa"``, ``"ve"``, ``"nlvr2"`` or ``"retrieval"``.
        split: of the data.
        answers: the names of the labels, the same ones in every split.
        examples: in an order that says nothing.
    """

    name: str
    split: str
    answers: tuple[str, ...]
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def scenes(self) -> np.ndarray:
        """``(n, 1 or 2, cells)``."""
        return np.stack([example.scenes for example in self.examples])

    @property
    def labels(self) -> np.ndarray:
        """``(n,)``."""
        return np.array([example.label for example in self.examples])

    @property
    def texts(self) -> list[str]:
        """One for each example."""
        return [example.text for example in self.examples]
