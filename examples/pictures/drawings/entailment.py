"""Hypotheses about a scene with covered cells: contradiction, neutral, entailment.

A cover hides anything, or nothing. Three scenes and three hypotheses make a square in which each
scene and each hypothesis has each label once, so that neither alone says anything. Where a square
does not fit into a grid, its hypotheses are not used: in 2 x 2 cells, "more than" and "three".
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from numpy.random import RandomState

from distillkit.errors import OptionError

from .examples import Example
from .pools import Pool, arrange, choose_concepts, choose_others, choose_words
from .words import WORDS

ANSWERS = ("contradiction", "neutral", "entailment")
KINDS = ("at least", "fewer than", "more than", "not more than")
NUMBERS = ("no", "one", "two", "three", "four")
_MOST = 3  # that a hypothesis counts to
_MOST_COVERS = 2
_TURNS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))  # of the labels: a Latin square


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis without its words.

    Attributes:
        kind: one of ``KINDS``.
        number: that a count is compared with; 0 where two counts are compared.
    """

    kind: str
    number: int = 0

    def text(self, word: str, other: str) -> str:
        """In words."""
        plural = WORDS[word].plural
        if self.number:
            return f"there are {self.kind} {NUMBERS[self.number]} {plural}"
        return f"there are {self.kind.removesuffix(' than')} {plural} than {WORDS[other].plural}"

    def label(self, count: int, other: int, covers: int) -> int:
        """The label, for what is seen of two classes and how many cells are covered.

        Examples:
            >>> [Hypothesis("at least", 2).label(count, 0, 1) for count in (0, 1, 2)]
            [0, 1, 2]
        """
        if self.number:
            sure, possible = count >= self.number, count + covers >= self.number
        else:
            sure, possible = count - covers > other, count + covers > other
        label = 2 if sure else int(possible)
        return 2 - label if self.kind in ("fewer than", "not more than") else label


_ALL = (
    *(Hypothesis(kind, number) for kind in KINDS[:2] for number in range(2, _MOST + 1)),
    *(Hypothesis(kind) for kind in KINDS[2:]),
)

Seen = tuple[int, int, int, int]  # of three classes, how many are seen; how many covers there are


def make_hypotheses(pool: Pool, size: int, random: RandomState) -> list[Example]:
    """About ``size`` examples in whole squares of nine."""
    squares = _squares(pool.cells)
    if not squares:
        raise OptionError(f"a grid of {pool.cells} cells is too small for hypotheses: take 2 x 2")
    by_kinds: dict[tuple[str, ...], list[tuple[Hypothesis, ...]]] = {}
    for trio in squares:
        by_kinds.setdefault(tuple(one.kind for one in trio), []).append(trio)
    kinds = sorted(by_kinds)
    found: list[Example] = []
    while len(found) < size:
        choices = by_kinds[kinds[random.randint(len(kinds))]]
        trio = choices[random.randint(len(choices))]
        found += _square(pool, trio, squares[trio], random)
    return found


def _square(
    pool: Pool,
    trio: Sequence[Hypothesis],
    fitting: Sequence[Sequence[Seen]],
    random: RandomState,
) -> list[Example]:
    words = choose_words(pool, 3, random)
    found = []
    for labels, choices in zip(_TURNS, fitting, strict=True):
        *seen, covers = choices[random.randint(len(choices))]
        shown: list[int] = []
        for word, count in zip(words, seen, strict=True):
            shown += choose_concepts(pool, word, count, random)
        shown += choose_others(pool, words, pool.cells - covers - len(shown), random)
        scene = arrange(pool, shown, random, covers)
        for place, hypothesis in enumerate(trio):
            text = hypothesis.text(words[place], words[(place + 1) % 3])
            found.append(Example(scene[None], text, labels[place], hypothesis.kind))
    return found


@cache
def _squares(cells: int) -> Mapping[tuple[Hypothesis, ...], tuple[tuple[Seen, ...], ...]]:
    """Three hypotheses -> for each turn of the labels, what may be seen.

    The first is about the first two of three classes, the second about the last two, the third
    about the last and the first.
    """
    fitting: dict[tuple[Hypothesis, ...], tuple[list[Seen], ...]] = {
        trio: ([], [], []) for trio in itertools.product(_ALL, repeat=3)
    }
    for seen in _contents(cells):
        labels = {
            (one, place): one.label(seen[place], seen[(place + 1) % 3], seen[3])
            for one in _ALL
            for place in range(3)
        }
        for trio, turns in fitting.items():
            own = tuple(labels[one, place] for place, one in enumerate(trio))
            if own in _TURNS:
                turns[_TURNS.index(own)].append(seen)
    return {trio: tuple(map(tuple, turns)) for trio, turns in fitting.items() if all(turns)}


def _contents(cells: int) -> list[Seen]:
    most = range(_MOST + 1)
    return [
        (*seen, covers)
        for covers in range(1, _MOST_COVERS + 1)
        for seen in itertools.product(most, repeat=3)
        if sum(seen) <= cells - covers
    ]
