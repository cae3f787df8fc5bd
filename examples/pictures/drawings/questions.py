"""Questions about one scene, as in VQA: is there, how many, where, which.

Scenes and questions come in blocks, in which each question has each of its answers equally often,
and so has each scene over the questions that it is asked: neither alone says anything of the answer
to a question of a known kind. (Of "which", a scene alone says that the answer is one of the things
in it, as of any picture.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import RandomState

from .examples import Example
from .pictures import Pictures
from .pools import Pool, arrange, choose_concepts, choose_others, choose_words, draw
from .words import WORDS

KINDS = ("is there", "how many", "where", "which")
_PLACES = {
    1: ("there",),
    2: ("top left", "top right", "bottom left", "bottom right"),
    3: (
        "top left", "top center", "top right", "middle left", "middle center", "middle right",
        "bottom left", "bottom center", "bottom right",
    ),
}  # fmt: skip


def places(grid: int) -> tuple[str, ...]:
    """The names of the cells, row by row.

    Examples:
        >>> places(2)
        ('top left', 'top right', 'bottom left', 'bottom right')
    """
    if grid in _PLACES:
        return _PLACES[grid]
    return tuple(f"row {i + 1} column {j + 1}" for i in range(grid) for j in range(grid))


def counts(cells: int) -> int:
    """How many numbers are asked for, from 0: a scene has room for all of them at once.

    Examples:
        >>> counts(4), counts(9)
        (3, 4)
    """
    found = 1
    while (found + 1) * found // 2 <= cells and found < 4:
        found += 1
    return found


def answers(pictures: Pictures, grid: int) -> tuple[str, ...]:
    """Every answer: yes and no, numbers, places, and the names of what training shows."""
    shown = {int(one) for one in pictures.concepts[pictures.of_split("train")]}
    names = sorted(pictures.table[one].name for one in shown if pictures.table[one].classes)
    numbers = tuple(str(number) for number in range(counts(grid * grid)))
    return ("yes", "no", *numbers, *places(grid), *names)


def make_questions(
    pool: Pool, known: Sequence[str], size: int, random: RandomState
) -> list[Example]:
    """About ``size`` questions, of every kind about as many; blocks are whole.

    Args:
        pool: what the scenes show.
        known: the answers; where a name is none of them, "which" is not asked.
        size: how many.
        random: of everything.
    """
    labels = {answer: label for label, answer in enumerate(known)}
    named = all(
        pool.table[one].name in labels for members in pool.of_word.values() for one in members
    )
    decks = {word: Deck(members, random) for word, members in pool.of_word.items()}
    makers: dict[str, Callable[[], list[tuple[np.ndarray, str, str]]]] = {
        "is there": lambda: _is_there(pool, random),
        "how many": lambda: _how_many(pool, random),
        "where": lambda: _where(pool, random),
        "which": lambda: _which(pool, decks, random),
    }
    kinds = KINDS if named else KINDS[:-1]
    found: list[Example] = []
    for number, kind in enumerate(kinds, 1):
        while len(found) < size * number // len(kinds):
            found += [
                Example(scene[None], text, labels[answer], kind)
                for scene, text, answer in makers[kind]()
            ]
    return found


class Deck:
    """Cards that are drawn without putting back, and shuffled anew when there are no more."""

    def __init__(self, cards: Sequence[int], random: RandomState) -> None:
        self._cards, self._random = tuple(cards), random
        self._left: list[int] = []

    def draw(self) -> int:
        """The next card."""
        if not self._left:
            self._left = [self._cards[i] for i in self._random.permutation(len(self._cards))]
        return self._left.pop()


def _is_there(pool: Pool, random: RandomState) -> list[tuple[np.ndarray, str, str]]:
    """Two scenes, each with one of two classes, and both questions about both."""
    words = choose_words(pool, 2, random)
    found = []
    for own in words:
        shown = choose_concepts(pool, own, 1, random)
        shown += choose_others(pool, words, pool.cells - 1, random)
        scene = arrange(pool, shown, random)
        found += [
            (scene, f"is there {WORDS[word].with_article}", "yes" if word == own else "no")
            for word in words
        ]
    return found


def _how_many(pool: Pool, random: RandomState) -> list[tuple[np.ndarray, str, str]]:
    """Each of some classes so often as each number says, in a scene for every rotation."""
    size = counts(pool.cells)
    words = choose_words(pool, size, random)
    found = []
    for turn in range(size):
        wanted = [(number + turn) % size for number in range(size)]
        shown: list[int] = []
        for word, number in zip(words, wanted, strict=True):
            shown += choose_concepts(pool, word, number, random)
        shown += choose_others(pool, words, pool.cells - len(shown), random)
        scene = arrange(pool, shown, random)
        found += [
            (scene, f"how many {WORDS[word].plural} are there", str(number))
            for word, number in zip(words, wanted, strict=True)
        ]
    return found


def _where(pool: Pool, random: RandomState) -> list[tuple[np.ndarray, str, str]]:
    """A class for every cell, in a scene for every rotation."""
    words = choose_words(pool, pool.cells, random)
    names = places(round(pool.cells**0.5))
    order = random.permutation(pool.cells)
    found = []
    for turn in range(pool.cells):
        at = np.roll(order, turn)
        scene = np.empty(pool.cells, np.int64)
        for word, place in zip(words, at, strict=True):
            (concept,) = choose_concepts(pool, word, 1, random)
            scene[place] = draw(pool, concept, random)
        found += [
            (scene, f"where is the {word}", names[place])
            for word, place in zip(words, at, strict=True)
        ]
    return found


def _which(
    pool: Pool, decks: dict[str, Deck], random: RandomState
) -> list[tuple[np.ndarray, str, str]]:
    """A scene of different classes, and which of each it shows; none of a class more often."""
    words = choose_words(pool, pool.cells, random)
    shown = [decks[word].draw() for word in words]
    scene = arrange(pool, shown, random)
    return [
        (scene, f"which {word} is there", pool.table[concept].name)
        for word, concept in zip(words, shown, strict=True)
    ]
