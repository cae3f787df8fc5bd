"""Answers by reading a text beside the true contents of its scenes.

Nothing here is used to make the tasks: texts are parsed, and what covers may hide is tried out, so
that labels which are wrong do not agree with it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import cached_property

from .examples import Example
from .pictures import Pictures
from .words import WORDS

_NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
_HYPOTHESIS = re.compile(
    r"there are (?:(at least|fewer than) (\w+) (.+)|(more|not more) (.+) than (.+))"
)
_ROWS = {1: ("",), 2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMNS = {1: ("there",), 2: ("left", "right"), 3: ("left", "center", "right")}


class Reader:
    """Answers texts about scenes of these pictures, whose contents it knows."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._singular = {word.plural: name for name, word in WORDS.items()}

    def answer(self, example: Example) -> str | None:
        """The answer in words; None: the text does not fit the scene."""
        text = example.text
        if len(example.scenes) == 2:
            truth = self._compare(text, *map(self._shown, example.scenes))
            return {True: "true", False: "false", None: None}[truth]
        scene = example.scenes[0]
        if found := _HYPOTHESIS.fullmatch(text):
            return self._judge(found, self._shown(scene), int((scene == -2).sum()))
        if found := re.fullmatch(r"is there an? (.+)", text):
            return "yes" if self._count(self._shown(scene), found[1]) else "no"
        if found := re.fullmatch(r"how many (.+) are there", text):
            return str(self._count(self._shown(scene), self._singular[found[1]]))
        if found := re.fullmatch(r"(where|which) (?:is the )?(.+?)(?: is there)?", text):
            return self._point(scene, found[2], found[1])
        return self._name(scene, text)

    def _shown(self, scene: Sequence[int]) -> list[int]:
        """The concepts of a scene."""
        return [int(self._pictures.concepts[number]) for number in scene if number >= 0]

    def _is(self, concept: int, word: str) -> bool:
        return word in self._pictures.table[concept].classes

    def _count(self, shown: Sequence[int], word: str) -> int:
        return sum(self._is(concept, word) for concept in shown)

    def _point(self, scene: Sequence[int], word: str, asked: str) -> str | None:
        """Where the only thing of a class is, or its name."""
        places = [
            place
            for place, number in enumerate(scene)
            if number >= 0 and self._is(self._pictures.concepts[number], word)
        ]
        if len(places) != 1:
            return None
        if asked == "which":
            return self._pictures.table[int(self._pictures.concepts[scene[places[0]]])].name
        side = round(len(scene) ** 0.5)
        row, column = divmod(places[0], side)
        if side not in _ROWS:
            return f"row {row + 1} column {column + 1}"
        return f"{_ROWS[side][row]} {_COLUMNS[side][column]}".strip()

    def _name(self, scene: Sequence[int], text: str) -> str | None:
        """The name, if it is that of the only drawing."""
        names = [self._pictures.table[concept].name for concept in self._shown(scene)]
        return text if names == [text] else None

    def _compare(self, text: str, left: list[int], right: list[int]) -> bool | None:
        """Whether a statement about two scenes is true."""
        if found := re.fullmatch(r"both images contain at least one (.+)", text):
            return all(self._count(side, found[1]) >= 1 for side in (left, right))
        if found := re.fullmatch(r"exactly one of the images contains an? (.+)", text):
            return sum(self._count(side, found[1]) >= 1 for side in (left, right)) == 1
        if found := re.fullmatch(r"the left image contains more (.+) than the right image", text):
            word = self._singular[found[1]]
            return self._count(left, word) > self._count(right, word)
        if found := re.fullmatch(r"the same (.+) appears in both images", text):
            return any(self._is(concept, found[1]) for concept in {*left} & {*right})
        if found := re.fullmatch(r"there (?:is|are) (\w+) (.+) in total", text):
            word = self._singular.get(found[2], found[2])
            return self._count([*left, *right], word) == _NUMBERS[found[1]]
        return None

    def _judge(self, found: re.Match[str], shown: list[int], covers: int) -> str:
        """The label of a hypothesis: true, false or both of what the covers may hide."""
        kind, number, counted, order, first, second = found.groups()
        words = [self._singular[plural] for plural in (counted or first, second) if plural]
        start = [self._count(shown, word) for word in words]
        truths = set()
        for hidden in itertools.product(self._may_be_hidden, repeat=covers):
            counts = [
                at + sum(word in classes for classes in hidden)
                for at, word in zip(start, words, strict=True)
            ]
            if number:
                holds = counts[0] >= _NUMBERS[number]
                truths.add(holds if kind == "at least" else not holds)
            else:
                holds = counts[0] > counts[1]
                truths.add(holds if order == "more" else not holds)
        if len(truths) == 2:
            return "neutral"
        return "entailment" if True in truths else "contradiction"

    @cached_property
    def _may_be_hidden(self) -> list[tuple[str, ...]]:
        """The classes that one thing has, for everything that there is; and nothing."""
        return [(), *sorted({concept.classes for concept in self._pictures.table} - {()})]
