"""What a split may put into scenes, and how a scene of wanted contents is drawn."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState

from distillkit.errors import OptionError

from .pictures import Concept, Pictures
from .scenes import COVERED, EMPTY

LEAST = 4  # concepts of a class that is spoken of: counts go to three, and one is another


@dataclass(frozen=True, eq=False)
class Pool:
    """The concepts of a split that belong to a class, and their drawings.

    Attributes:
        drawings: concept -> its drawings.
        of_word: singular word of a class -> its concepts.
        disjoint: word -> the words with which it shares no concept.
        table: the concepts, by number.
        cells: of a scene.
    """

    drawings: Mapping[int, tuple[int, ...]]
    of_word: Mapping[str, tuple[int, ...]]
    disjoint: Mapping[str, frozenset[str]]
    table: tuple[Concept, ...]
    cells: int

    @property
    def words(self) -> tuple[str, ...]:
        """The words in alphabetical order."""
        return tuple(self.of_word)


def make_pool(pictures: Pictures, split: str, grid: int) -> Pool:
    """The pool of the scenes of a split.

    Scenes of ``"seen"`` are new scenes of the drawings of training.
    """
    drawings = defaultdict(list)
    source = "train" if split == "seen" else split
    for number in pictures.of_split(source):
        concept = int(pictures.concepts[number])
        if pictures.table[concept].classes:
            drawings[concept].append(int(number))
    members = defaultdict(list)
    for concept in sorted(drawings):
        for word in pictures.table[concept].classes:
            members[word].append(concept)
    of_word = {
        word: tuple(members[word]) for word in sorted(members) if len(members[word]) >= LEAST
    }
    disjoint = {
        word: frozenset(other for other in of_word if not {*of_word[other]} & {*own})
        for word, own in of_word.items()
    }
    return Pool(
        {concept: tuple(own) for concept, own in drawings.items()},
        of_word, disjoint, pictures.table, grid * grid,
    )  # fmt: skip


def random_of(task: str, split: str) -> RandomState:
    """The random numbers of a task and a split: no two share a stream."""
    digest = hashlib.sha256(f"{task}/{split}".encode()).digest()
    return RandomState(np.frombuffer(digest, np.uint32))


def choose_words(pool: Pool, count: int, random: RandomState) -> list[str]:
    """Words no two of which share a concept, at random.

    Raises:
        OptionError: there are not so many.
    """
    for _ in range(100):
        chosen: list[str] = []
        left = {*pool.words}
        for place in random.permutation(len(pool.words)):
            word = pool.words[place]
            if word in left:
                chosen.append(word)
                left &= pool.disjoint[word]
            if len(chosen) == count:
                return chosen
    raise OptionError(
        f"{count} classes that share nothing are needed, each with {LEAST} concepts; of "
        f"{', '.join(map(repr, pool.words)) or 'no words'} there are fewer"
    )


def choose_concepts(
    pool: Pool, word: str, count: int, random: RandomState, without: Sequence[int] = ()
) -> list[int]:
    """So many different concepts of a class."""
    left = [one for one in pool.of_word[word] if one not in without]
    return [left[place] for place in random.permutation(len(left))[:count]]


def choose_others(pool: Pool, words: Sequence[str], count: int, random: RandomState) -> list[int]:
    """So many different concepts of none of these classes, of classes as likely as each other.

    Raises:
        OptionError: there are not so many.
    """
    allowed = frozenset(pool.words).intersection(*(pool.disjoint[word] for word in words))
    names = [word for word in pool.words if word in allowed]
    if count > len({concept for word in names for concept in pool.of_word[word]}):
        others = ", ".join(map(repr, names)) or "there are none"
        raise OptionError(
            f"{count} things beside {', '.join(map(repr, words))} are needed, and classes that "
            f"share nothing with these have fewer: {others}"
        )
    found: list[int] = []
    while len(found) < count:
        members = pool.of_word[names[random.randint(len(names))]]
        concept = members[random.randint(len(members))]
        if concept not in found:
            found.append(concept)
    return found


def draw(pool: Pool, concept: int, random: RandomState) -> int:
    """A drawing of a concept, by any artist of the split."""
    drawings = pool.drawings[concept]
    return drawings[random.randint(len(drawings))]


def arrange(
    pool: Pool, concepts: Sequence[int], random: RandomState, covers: int = 0
) -> np.ndarray:
    """A scene, ``(cells,)``: these concepts and covers in cells at random, the rest empty."""
    cells = np.full(pool.cells, EMPTY)
    places = random.permutation(pool.cells)
    for place, concept in zip(places, concepts, strict=False):
        cells[place] = draw(pool, concept, random)
    cells[places[len(concepts) : len(concepts) + covers]] = COVERED
    return cells
