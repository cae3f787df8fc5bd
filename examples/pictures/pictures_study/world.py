"""The drawings' tasks as tensors, in the space of perception."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from drawings import Pictures
from drawings import load as load_pictures
from drawings.tasks import SPLITS, Task
from drawings.tasks import load as load_task
from drawings.words import WORDS
from numpy.typing import NDArray
from torch import Tensor

from .batches import Examples, with_marks
from .features import load_features, with_class
from .models import Shape
from .perception import Singles, Space, learn
from .words import Vocabulary, load_words

FILE = "space.npz"
SEED = 0  # of perception and of candidates: the same for every model
LENGTH = 12  # tokens of the longest text and its start
CANDIDATES = {"train": 8}  # names to choose from in retrieval
CANDIDATES_OF_TEST = 32


@dataclass(frozen=True)
class World:
    """What every model of the study shares.

    Attributes:
        folder: that ``build.py`` made.
        vocabulary: of all tasks.
        words: ``(v, f)``: the vectors that words begin as.
        vectors: ``(drawings + 2, f)``: of drawings, a cover and an empty cell.
        is_seen: ``(drawings,)``: whether it belongs to a class, and has features.
        grid: rows and columns of a scene.
    """

    folder: Path
    vocabulary: Vocabulary
    words: Tensor
    vectors: Tensor
    is_seen: NDArray[np.bool_]
    grid: tuple[int, int]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """``(texts, n)``: the words of texts, 0 where a text has ended.

        Raises:
            SystemExit: a text is longer than models read.
        """
        found = self.vocabulary.encode(texts)
        if found.shape[1] > LENGTH:
            longest = max(texts, key=lambda text: len(self.vocabulary.split(text)))
            raise SystemExit(f"models read {LENGTH - 1} words at most, and a text is {longest!r}")
        return found

    def examples(self, task: str, split: str, most: int) -> Examples:
        """At most so many examples of a task and split, the first ones."""
        held = load_task(self.folder, task, split)
        # what belongs to no class is in no scene but those of retrieval, and has no features
        fit = [one for one in held.examples if self.is_seen[one.scenes.max()]]
        kept = Task(held.name, held.split, held.answers, tuple(fit[:most]))
        make = _retrieval if task == "retrieval" else _classes
        texts, text, label = make(kept)
        scenes = torch.from_numpy(kept.scenes)
        return Examples(self.encode(texts), text, scenes, label, self.vectors)


def _classes(task: Task) -> tuple[list[str], Tensor, Tensor]:
    """Texts, the text of each example, labels."""
    texts = sorted(set(task.texts))
    number = {text: place for place, text in enumerate(texts)}
    text = torch.tensor([[number[one]] for one in task.texts])
    return texts, text, torch.from_numpy(task.labels)


def _retrieval(task: Task) -> tuple[list[str], Tensor, Tensor]:
    """Names, the candidates of each drawing, and which of them is its own: the first."""
    texts, own, _ = _classes(task)
    digest = hashlib.sha256(f"{SEED}/{task.split}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    count = min(CANDIDATES.get(task.split, CANDIDATES_OF_TEST), len(texts))
    # of all names in a random order, the first ones that are not its own
    order = torch.rand(len(own), len(texts), generator=generator).scatter(1, own, -1.0)
    return texts, order.argsort(1)[:, :count], torch.zeros(len(own), dtype=torch.long)


def shape_of(task: str, world: World, depth: int, width: int) -> Shape:
    """The sizes of a model of a task; without one, of a model that scores captions."""
    answers, scenes = 1, 1
    if task:
        held = load_task(world.folder, task, "train")
        scenes = held.scenes.shape[1]
        answers = 1 if task == "retrieval" else len(held.answers)
    return Shape(
        answers=answers, features=world.words.shape[1], length=LENGTH, grid=world.grid,
        scenes=scenes, depth=depth, width=width,
    )  # fmt: skip


def load_world(folder: Path) -> World:
    """What the folder holds, and what of it is still to be computed: features, words, the space."""
    pictures = load_pictures(folder)
    vocabulary, vectors = load_words(folder, pictures)
    space = _space(folder, pictures, vocabulary, vectors)
    side = round(load_task(folder, "vqa", "train").scenes.shape[2] ** 0.5)
    words = with_marks(space.words)[:-2]
    drawings = with_marks(space.drawings)
    return World(folder, vocabulary, words, drawings, with_class(pictures), (side, side))


def _space(folder: Path, pictures: Pictures, vocabulary: Vocabulary, vectors: Tensor) -> Space:
    path = folder / FILE
    if not path.exists():
        write_space(folder, learn(singles_of(pictures, folder, vocabulary, vectors), SEED))
    held = np.load(path)
    space = Space(torch.from_numpy(held["drawings"]), torch.from_numpy(held["words"]))
    if (len(space.drawings), len(space.words)) != (len(pictures), len(vocabulary)):
        raise SystemExit(f"{path} is of other drawings or words: delete it")
    return space


def sight_of(world: World, pictures: Pictures) -> dict[str, float]:
    """The share of the drawings of each split that are nearer to their classes than to others."""
    classes = list(WORDS)
    words = world.words[[world.vocabulary[word] for word in classes]]
    near = world.vectors[:-2] @ words.T  # (n, classes)
    own = _classes_of(pictures)[torch.from_numpy(pictures.concepts)] > 0
    farthest = near.masked_fill(~own, torch.inf).min(1).values
    right = (farthest > near.masked_fill(own, -torch.inf).max(1).values).numpy()
    shown = {split: pictures.of_split(split) for split in SPLITS}
    return {
        split: float(right[numbers[world.is_seen[numbers]]].mean())
        for split, numbers in shown.items()
    }


def _classes_of(pictures: Pictures) -> Tensor:
    """``(concepts, classes)``, 1 where a concept is of a class."""
    return torch.tensor(
        [[float(word in concept.classes) for word in WORDS] for concept in pictures.table]
    )


def write_space(folder: Path, space: Space) -> None:
    """The whole file or none."""
    path = folder / FILE
    beside = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(beside, drawings=space.drawings.numpy(), words=space.words.numpy())
    beside.replace(path)


def singles_of(
    pictures: Pictures, folder: Path, vocabulary: Vocabulary, vectors: Tensor
) -> Singles:
    """Single drawings of training with their classes and names."""
    classes = list(WORDS)
    concepts = torch.from_numpy(pictures.concepts)
    training = pictures.of_split("train")
    return Singles(
        features=torch.from_numpy(load_features(folder, pictures)),
        is_of=_classes_of(pictures)[concepts],
        name=concepts,
        training=torch.from_numpy(training[with_class(pictures)[training]]),
        words=vectors,
        classes=torch.tensor([vocabulary[word] for word in classes]),
        names=torch.tensor([vocabulary[concept.name] for concept in pictures.table]),
    )
