"""How far one gets with a text and no scene, or with a scene and no text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.neural_network import MLPClassifier

from .examples import Task
from .pictures import Pictures
from .reading import Reader
from .scenes import COVERED, EMPTY
from .words import WORDS

_WIDTH, _EPOCHS = 64, 8  # of the network


@dataclass(frozen=True)
class Shortcuts:
    """Accuracies on a split, of what was fitted to the training split.

    Attributes:
        prior: the most frequent answer to questions of the same kind.
        text: the most frequent answer to the same text.
        words: logistic regression on the words of the text.
        text_limit: no function of the text alone is better on this split.
        contents: a network of what is in which cell, and how often, without the text.
        cells: the most frequent answer for as many drawings and covers.
        scene_limit: no function of the scenes alone is better on this split.
        reader: both, see :class:`~drawings.reading.Reader`.
    """

    prior: float
    text: float
    words: float
    text_limit: float
    contents: float
    cells: float
    scene_limit: float
    reader: float


def measure(train: Task, splits: Sequence[Task], pictures: Pictures) -> list[Shortcuts]:
    """The accuracies on each split."""
    words = CountVectorizer(token_pattern=r"\S+", binary=True).fit(train.texts)
    by_words = _fit(words.transform(train.texts), train.labels)
    by_contents = _fit(contents_of(train, pictures), train.labels, _WIDTH)
    kinds, cells, learned = _kinds(train), _cells(train), train.labels.tolist()
    found = []
    for split in splits:
        labels = split.labels.tolist()
        found.append(
            Shortcuts(
                prior=best_per_key(kinds, learned, _kinds(split), labels),
                text=best_per_key(train.texts, learned, split.texts, labels),
                words=by_words.score(words.transform(split.texts), labels),
                text_limit=best_per_key(split.texts, labels, split.texts, labels),
                contents=by_contents.score(contents_of(split, pictures), labels),
                cells=best_per_key(cells, learned, _cells(split), labels),
                scene_limit=best_per_key(_scenes(split), labels, _scenes(split), labels),
                reader=share_right(split, pictures),
            )
        )
    return found


def best_per_key(
    keys: Sequence[Hashable],
    labels: Sequence[int],
    test_keys: Sequence[Hashable],
    test_labels: Sequence[int],
) -> float:
    """The accuracy of the most frequent label of each key; of all, where a key is new.

    Examples:
        >>> best_per_key(["a", "a", "b"], [1, 1, 0], ["a", "b", "c"], [1, 1, 1])
        0.6666666666666666
    """
    counts: defaultdict[Hashable, Counter[int]] = defaultdict(Counter)
    for key, label in zip(keys, labels, strict=True):
        counts[key][label] += 1
    best = {key: _most_frequent(own) for key, own in counts.items()}
    of_all = _most_frequent(Counter(labels))
    right = [
        best.get(key, of_all) == label for key, label in zip(test_keys, test_labels, strict=True)
    ]
    return sum(right) / len(right)


def contents_of(task: Task, pictures: Pictures) -> np.ndarray:
    """What a scene shows, as numbers: classes, emptiness or a cover of every cell, and their sums.

    Returns:
        ``(n, features)`` float32.
    """
    rows = {word: row for row, word in enumerate(WORDS)}
    table = np.zeros((len(pictures.table), len(rows) + 2), np.float32)
    for concept, one in enumerate(pictures.table):
        table[concept, [rows[word] for word in one.classes]] = 1
    # what stands at -1 and -2 of the drawings is an empty cell and a cover
    of_drawing = np.concatenate([table[pictures.concepts], np.zeros_like(table[:2])])
    of_drawing[COVERED, len(rows)] = of_drawing[EMPTY, len(rows) + 1] = 1
    shown = of_drawing[task.scenes]  # (n, scenes, cells, features)
    count = len(shown)
    return np.concatenate([shown.reshape(count, -1), shown.sum(2).reshape(count, -1)], 1)


def share_right(task: Task, pictures: Pictures) -> float:
    """The accuracy of reading the text beside the true contents; 1 if labels are right."""
    reader = Reader(pictures)
    right = [reader.answer(one) == task.answers[one.label] for one in task.examples]
    return sum(right) / len(right)


def _fit(features: np.ndarray, labels: np.ndarray, *hidden: int) -> MLPClassifier:
    """Softmax regression, or a network where there are hidden units."""
    model = MLPClassifier(hidden, batch_size=128, learning_rate_init=3e-3, random_state=0)
    classes = np.unique(labels)
    for _ in range(_EPOCHS):
        model.partial_fit(features, labels, classes=classes)
    return model


def _most_frequent(counts: Counter[int]) -> int:
    """The most frequent label, of several the first."""
    return min(counts, key=lambda label: (-counts[label], label))


def _kinds(task: Task) -> list[str]:
    """What is asked for; a statement of another kind has the same answers."""
    return [example.kind for example in task.examples]


def _cells(task: Task) -> list[tuple[int, int]]:
    """How many cells hold a drawing, and how many are covered."""
    return [(int((scenes >= 0).sum()), int((scenes == COVERED).sum())) for scenes in task.scenes]


def _scenes(task: Task) -> list[bytes]:
    return [example.scenes.tobytes() for example in task.examples]
