"""Which layers a term compares with which: what ``layers`` says, and for given depths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from .._backbone.depth import LayerIndices, Span, nearest_layer
from ..errors import RecipeError, did_you_mean, unknown_name

Place: TypeAlias = "int | float"
"""A layer: an index from either end, or a relative depth in [0, 1]."""

LayerChoice: TypeAlias = "str | Mapping[str, Any] | Sequence[tuple[Place, Place | Sequence[Place]]]"
"""A word, pairs ``[student, teacher or group of the teacher's]``, or a table of either."""

Match: TypeAlias = Literal["mean", "best", "uniform"]

WORDS = ("all", "first", "last", "middle", "uniform")
MATCHES = ("best", "mean", "uniform")

_KEYS = ("from", "to", "pairs", "match")
_EXAMPLES = (
    '`layers` is a word ("last", "first", "middle", "uniform", "all"), pairs [[student, teacher], '
    "...] of indices or of fractions, of which the teacher's may be a group [0, [0, 1, 2]], or a "
    'table { from = 0.3, to = 0.7, match = "mean" }'
)


class Matched(NamedTuple):
    """One layer of the student and what it is compared with.

    Attributes:
        student: its index, from either end.
        teachers: the indices of one or several layers of the teacher.
    """

    student: int
    teachers: tuple[int, ...]


class LayerRule(NamedTuple):
    """What ``layers`` says, before any depth is known.

    Attributes:
        given: what was written, for messages.
        pairs: student and teachers, each an index or a :class:`Span` of one layer.
        span: the layers of each side that are matched; None: ``pairs`` says it.
        match: how several layers of the teacher are compared with one of the student.
    """

    given: Any
    pairs: tuple[tuple[int | Span, tuple[int | Span, ...]], ...] = ()
    span: Span | None = None
    match: Match = "mean"

    @property
    def is_last(self) -> bool:
        """Whether it is the default, which also means signals without layers."""
        return bool(self.given == "last")

    @property
    def has_fractions(self) -> bool:
        """Whether it speaks of relative depths."""
        return self.span is not None or any(isinstance(one, Span) for one, _ in self.pairs)

    def wanted(self, side: int) -> LayerIndices:
        """The layers of one side (0: the student's, 1: the teacher's) that it may name."""
        if self.given == "all":
            return "all"
        if self.span is not None:
            return frozenset({self.span})
        if side == 0:
            return frozenset(student for student, _ in self.pairs)
        return frozenset(one for _, teachers in self.pairs for one in teachers)

    def matched(self, term: str, student: int, teacher: int) -> list[Matched]:
        """The layers of so many that are compared, bottom to top as far as the rule orders them.

        Args:
            term: what errors call the term.
            student: how many layers the student has.
            teacher: how many the teacher has.

        Raises:
            RecipeError: a layer that is not there; ``"all"`` of unequal depths.
        """
        if self.given == "all":
            if student != teacher:
                raise RecipeError(
                    f'term {term!r}: layers = "all" needs equal depths; the student has {student} '
                    f'layers and the teacher {teacher}; layers = "uniform" spaces the teacher\'s '
                    "evenly, or name pairs: layers = [[0, 1], ...]"
                )
            found = [Matched(i, (i,)) for i in range(student)]
        elif self.span is not None:
            found = self._spaced(self.span.of(student), self.span.of(teacher))
        else:
            found = [
                Matched(_index(one, student), _distinct(others, teacher))
                for one, others in self.pairs
            ]
        if not found or not all(_is_there(one, student, teacher) for one in found):
            raise RecipeError(
                f"term {term!r}: layers = {self.given!r} names a layer that is not there; the "
                f"student has {student}, the teacher {teacher}"
            )
        return found

    def _spaced(self, students: range, teachers: range) -> list[Matched]:
        """Every student's layer with its share of the teacher's, which are cut into equal runs."""
        if not teachers:
            return []
        found = []
        for k, student in enumerate(students):
            start = k * len(teachers) // len(students)
            stop = max(start + 1, (k + 1) * len(teachers) // len(students))
            run = tuple(teachers[start:stop])
            found.append(Matched(student, run[-1:] if self.match == "uniform" else run))
        return found


def layer_rule(given: LayerChoice) -> LayerRule:
    """What a term's ``layers`` says.

    Raises:
        UnknownNameError: a word that is none of the known ones.
        RecipeError: something that names no layers, with what is wrong in one line.

    Examples:
        >>> layer_rule("middle").matched("t", 4, 9)
        [Matched(student=1, teachers=(2, 3)), Matched(student=2, teachers=(4, 5, 6))]
        >>> layer_rule([[0.5, 0.5]]).matched("t", 3, 9)
        [Matched(student=1, teachers=(4,))]
        >>> [one.teachers[0] for one in layer_rule("uniform").matched("t", 4, 12)]
        [2, 5, 8, 11]
    """
    if isinstance(given, str):
        return _of_word(given)
    if isinstance(given, Mapping):
        return _of_table(given)
    return LayerRule(given, _pairs(given, given))


def _of_word(word: str) -> LayerRule:
    if word not in WORDS:
        raise unknown_name("choice of `layers`", word, WORDS)
    if word == "all":
        return LayerRule(word)
    if word == "middle":
        return LayerRule(word, span=Span(0.3, 0.7))
    if word == "uniform":
        return LayerRule(word, span=Span(0.0, 1.0), match="uniform")
    end = 0 if word == "first" else -1
    return LayerRule(word, ((end, (end,)),))


def _of_table(table: Mapping[str, Any]) -> LayerRule:
    for key in table:
        if key not in _KEYS:
            raise RecipeError(f"layers = {dict(table)!r}: {_unknown_key(key)}")
    match = table.get("match", "mean")
    if match not in MATCHES:
        raise unknown_name("`match` of `layers`", str(match), MATCHES)
    if "pairs" in table:
        if "from" in table or "to" in table:
            raise RecipeError(f"layers = {dict(table)!r} has `pairs` and from ... to: keep one")
        if match == "uniform":
            raise RecipeError(
                'match = "uniform" spaces layers between `from` and `to`; pairs name theirs, with '
                'match = "mean" or "best" of a group'
            )
        return LayerRule(dict(table), _pairs(table["pairs"], dict(table)), match=match)
    _check_ends(table)
    return LayerRule(dict(table), span=Span(table["from"], table["to"]), match=match)


def _check_ends(table: Mapping[str, Any]) -> None:
    for key in ("from", "to"):
        if key not in table:
            raise RecipeError(f"layers = {dict(table)!r} lacks `{key}`: {_EXAMPLES}")
        if not isinstance(table[key], float):
            raise RecipeError(
                f"layers: {key} = {table[key]!r} is no relative depth, which has a decimal point: "
                "0.0 is the first layer, 1.0 the last; indices stand in pairs"
            )
        _check_fraction(table[key])
    if table["from"] >= table["to"]:
        raise RecipeError(
            f"layers: from = {table['from']} is not below to = {table['to']}; one layer is a pair, "
            f"[[{table['from']}, {table['to']}]]"
        )


def _unknown_key(key: Any) -> str:
    return f"no key of `layers` is called {key!r}; {did_you_mean(str(key), _KEYS)}"


def _pairs(pairs: Any, given: Any) -> tuple[tuple[int | Span, tuple[int | Span, ...]], ...]:
    """Pairs of which all numbers are indices, or all are fractions.

    TOML and Python tell 1 and 1.0 apart and people do not always, so that no choice has both.
    """
    if not _is_list(pairs):
        raise RecipeError(f"{_EXAMPLES}; got {given!r}")
    if not pairs:
        raise RecipeError(f"layers = {given!r} names no pair: {_EXAMPLES}")
    found: list[tuple[int | Span, tuple[int | Span, ...]]] = []
    kinds: set[type] = set()
    for pair in pairs:
        if not _is_list(pair) or len(pair) != 2:
            raise RecipeError(f"layers: {pair!r} is no pair; {_EXAMPLES}")
        student, teachers = pair
        if _is_list(student):
            raise RecipeError(
                f"layers: {_shown(pair)} has a group on the student's side; groups are of the "
                "teacher's layers, [0, [0, 1, 2]]"
            )
        group = teachers if _is_list(teachers) else [teachers]
        if not group:
            raise RecipeError(f"layers: {_shown(pair)} has an empty group of teacher layers")
        kinds.update(_checked_kind(place, pair) for place in (student, *group))
        if len(set(group)) < len(group):
            raise RecipeError(f"layers: {_shown(pair)} has a teacher layer twice in its group")
        found.append((_place(student), tuple(map(_place, group))))
    if len(kinds) > 1:
        raise RecipeError(
            f"layers = {_shown(given)} mixes indices and fractions, and 1 is the second layer "
            "while 1.0 is the last: write all of them as indices (-1 is the last) or all with a "
            "decimal point"
        )
    return tuple(found)


def _checked_kind(place: Any, pair: Any) -> type:
    if isinstance(place, bool) or not isinstance(place, (int, float)):
        raise RecipeError(f"layers: {place!r} in {_shown(pair)} is no layer; {_EXAMPLES}")
    if isinstance(place, float):
        _check_fraction(place)
        return float
    return int


def _check_fraction(fraction: float) -> None:
    if math.isnan(fraction) or not 0 <= fraction <= 1:
        raise RecipeError(
            f"layers: the fraction {fraction} is a relative depth in [0, 1]: 0.0 is the first "
            "layer, 1.0 the last"
        )


def _place(place: Place) -> int | Span:
    return Span(place, place) if isinstance(place, float) else place


def _index(place: int | Span, depth: int) -> int:
    """An index as it is, since signals of other depths may pair from the top."""
    return nearest_layer(place.start, depth) if isinstance(place, Span) else place


def _distinct(group: Iterable[int | Span], depth: int) -> tuple[int, ...]:
    """The indices of a group; layers that coincide at this depth count once."""
    found: dict[int, int] = {}
    for place in group:
        index = _index(place, depth)
        found.setdefault(index % depth if -depth <= index < depth else index, index)
    return tuple(found.values())


def _is_there(matched: Matched, student: int, teacher: int) -> bool:
    layers = [(matched.student, student), *((one, teacher) for one in matched.teachers)]
    return all(-depth <= index < depth for index, depth in layers)


def _is_list(x: Any) -> bool:
    return isinstance(x, Sequence) and not isinstance(x, str)


def _shown(given: Any) -> Any:
    """As TOML has it: lists in square brackets, also where pydantic made tuples of them."""
    return [_shown(one) for one in given] if _is_list(given) else given


def show_positions(positions: Iterable[int]) -> str:
    """Layers in a line: runs as ``3-8``.

    Examples:
        >>> show_positions([3]), show_positions([3, 4, 5, 8])
        ('3', '3-5, 8')
    """
    runs: list[list[int]] = []
    for one in positions:
        if runs and one == runs[-1][1] + 1:
            runs[-1][1] = one
        else:
            runs.append([one, one])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
