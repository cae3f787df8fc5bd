"""Statements about two scenes, as in NLVR2: true or false.

Two statements and two pairs of scenes make a square in which each statement and each pair is once
true and once false, so that neither alone says anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.random import RandomState

from .entailment import NUMBERS
from .examples import Example
from .pools import Pool, arrange, choose_concepts, choose_others, choose_words
from .words import WORDS

Choice = TypeVar("Choice")

ANSWERS = ("false", "true")
KINDS = ("both", "exactly one", "more", "in total", "same")
_MOST = 3  # of a class in a scene


@dataclass(frozen=True)
class Contents:
    """What two scenes show of a class.

    Attributes:
        left: how many.
        right: how many.
        same: one of them is shown in both, where it matters; else all are different.
    """

    left: int
    right: int
    same: bool


@dataclass(frozen=True)
class Statement:
    """A statement without its word.

    Attributes:
        kind: one of ``KINDS``.
        number: of the total; 0 for other kinds.
    """

    kind: str
    number: int = 0

    def text(self, word: str) -> str:
        """In words."""
        own = WORDS[word]
        if self.kind == "both":
            return f"both images contain at least one {own.singular}"
        if self.kind == "exactly one":
            return f"exactly one of the images contains {own.with_article}"
        if self.kind == "more":
            return f"the left image contains more {own.plural} than the right image"
        if self.kind == "same":
            return f"the same {own.singular} appears in both images"
        if self.number == 1:
            return f"there is one {own.singular} in total"
        return f"there are {NUMBERS[self.number]} {own.plural} in total"

    def truth(self, seen: Contents) -> bool:
        """Whether it is true."""
        return {
            "both": seen.left > 0 and seen.right > 0,
            "exactly one": (seen.left > 0) != (seen.right > 0),
            "more": seen.left > seen.right,
            "in total": seen.left + seen.right == self.number,
            "same": seen.same,
        }[self.kind]

    def fits(self, seen: Contents) -> bool:
        """Whether it says something of these: its class is there, "the same" in both scenes."""
        if self.kind == "same":
            return seen.left > 0 and seen.right > 0
        return seen.left + seen.right > 0


_ALL = {
    kind: [Statement(kind, number) for number in (range(1, 5) if kind == "in total" else [0])]
    for kind in KINDS
}


def make_statements(pool: Pool, size: int, random: RandomState) -> list[Example]:
    """About ``size`` examples in whole squares of four."""
    found: list[Example] = []
    while len(found) < size:
        words = choose_words(pool, 2, random)
        asked = [_choose(_ALL[KINDS[random.randint(len(KINDS))]], random) for _ in words]
        for truths in ((True, False), (False, True)):
            pair = _pair(pool, words, asked, truths, random)
            found += [
                Example(pair, statement.text(word), int(truth), statement.kind)
                for word, statement, truth in zip(words, asked, truths, strict=True)
            ]
    return found


def _choose(choices: Sequence[Choice], random: RandomState) -> Choice:
    return choices[random.randint(len(choices))]


def _pair(
    pool: Pool,
    words: list[str],
    asked: list[Statement],
    truths: tuple[bool, bool],
    random: RandomState,
) -> np.ndarray:
    """Two scenes, ``(2, cells)``, of which the statements are as true as they should be."""
    choices = [
        _contents(statement, truth, len(pool.of_word[word]))
        for word, statement, truth in zip(words, asked, truths, strict=True)
    ]
    first, second = _choose(choices[0], random), _choose(choices[1], random)
    while max(first.left + second.left, first.right + second.right) > pool.cells:
        first, second = _choose(choices[0], random), _choose(choices[1], random)
    sides: tuple[list[int], list[int]] = ([], [])
    for word, seen in zip(words, (first, second), strict=True):
        for side, shown in zip(sides, _shown(pool, word, seen, random), strict=True):
            side.extend(shown)
    scenes = [
        arrange(pool, side + choose_others(pool, words, pool.cells - len(side), random), random)
        for side in sides
    ]
    return np.stack(scenes)


@cache
def _contents(
    statement: Statement,
    truth: bool,  # noqa: FBT001
    concepts: int,
) -> tuple[Contents, ...]:
    """What two scenes may show of a class with so many concepts."""
    most = range(_MOST + 1)
    every = [
        Contents(left, right, same)
        for left, right in itertools.product(most, most)
        for same in ((False, True) if left and right else (False,))
        if left + right - same <= concepts
    ]
    return tuple(one for one in every if statement.fits(one) and statement.truth(one) == truth)


def _shown(
    pool: Pool, word: str, seen: Contents, random: RandomState
) -> tuple[list[int], list[int]]:
    """The concepts of a class on the left and on the right."""
    different = choose_concepts(pool, word, seen.left + seen.right - seen.same, random)
    left = different[: seen.left]
    right = different[seen.left - seen.same :]
    return left, right
