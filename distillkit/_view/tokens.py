"""What the page says of each token: its word or its place, and whether it is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .._backbone.axis import TokenAxis
from .._backbone.tokens import WHOLE, grid_extents
from ..errors import OptionError, ShapeError, SignalError

Words = Sequence[Sequence[str]]
Box = tuple[float, ...]
"""Which picture, and top, left, bottom, right as fractions of it."""

_NAMES = (
    "words= is a tokenizer, or a list of tokens for each example: all of them, or those without "
    "padding, or without padding and special tokens"
)


class Token(NamedTuple):
    """One token of one example.

    Attributes:
        label: what it is called.
        kind: ``"token"``, ``"special"`` or ``"padding"``.
        box: where it lies; None: nowhere.
    """

    label: str
    kind: str
    box: Box | None


def given_words(words: Any, *, known: bool) -> Words | None:
    """Lists of words that were given; None: nothing or a tokenizer was.

    Args:
        words: the argument ``words``.
        known: whether the signals know the entries of their vocabulary.
    """
    if words is None or hasattr(words, "decode") or callable(words):
        if words is not None and not known:
            raise OptionError(
                "a tokenizer names the vocabulary entries that a batch holds; an Attention alone "
                "has none: give words= as lists of tokens"
            )
        return None
    is_list = isinstance(words, Sequence) and not isinstance(words, str)
    if not is_list or any(isinstance(one, str) or not isinstance(one, Sequence) for one in words):
        raise OptionError(f"{_NAMES}; got {_shown(words)}")
    return [[str(word) for word in one] for one in words]


def _shown(words: Any) -> str:
    text = repr(words)
    return text if len(text) < 80 else f"{text[:77]}..."


class Explained(NamedTuple):
    """What tokens are named and placed by.

    Attributes:
        words: a tokenizer, lists of words, or None.
        batch: the entries of the batch.
        raw: whether the images are raw: tokens that say where they lie lie there.
    """

    words: Any
    batch: Mapping[str, Any]
    raw: bool


def tokens_of(axis: TokenAxis, examples: int, count: int, by: Explained) -> list[list[Token]]:
    """The tokens of each example.

    Raises:
        ShapeError: words that are not as many as the tokens.
        SignalError: patches of which nothing says where they lie.
    """
    valid = _per_example(axis.valid, examples, count)
    special = _special(axis, examples, count)
    kinds = [
        ["padding" if not v else "special" if s else "token" for v, s in zip(*row, strict=True)]
        for row in zip(valid, special, strict=True)
    ]
    if axis.modality == "text":
        labels = _word_labels(axis, kinds, by)
        return [
            [Token(word, kind, None) for word, kind in zip(*row, strict=True)]
            for row in zip(labels, kinds, strict=True)
        ]
    places = _places(axis, kinds, raw=by.raw)
    return [
        [Token(*one) for one in zip(_patch_labels(axis, row), row, boxes, strict=True)]
        for row, boxes in zip(kinds, places, strict=True)
    ]


def _patch_labels(axis: TokenAxis, kinds: Sequence[str]) -> Iterator[str]:
    """Row and column of each patch, where there is one grid; else its number."""
    patch = 0
    for i, kind in enumerate(kinds):
        if kind != "token":
            yield f"[{axis.modality} {i}]" if kind == "special" else "[padding]"
            continue
        if isinstance(axis.grid, tuple):
            row, column = divmod(patch, axis.grid[1])
            yield f"row {row + 1}, column {column + 1}"
        else:
            yield f"patch {patch + 1}"
        patch += 1


def _per_example(mask: Tensor | None, examples: int, count: int) -> list[list[bool]]:
    if mask is None:
        return [[True] * count] * examples
    found: list[list[bool]] = mask.cpu().expand(examples, count).tolist()
    return found


def _special(axis: TokenAxis, examples: int, count: int) -> list[list[bool]]:
    if isinstance(axis.special, Tensor):
        return _per_example(axis.special, examples, count)
    return [[i in axis.special for i in range(count)]] * examples


# --------------------------------------------------------------------------------------- words


def _word_labels(axis: TokenAxis, kinds: list[list[str]], by: Explained) -> list[list[str]]:
    words = by.words
    if words is None or hasattr(words, "decode"):
        ids = axis.ids if axis.ids is not None else _ids_of(by.batch, kinds)
        if ids is None and words is not None:
            raise SignalError(
                "the tokenizer has nothing to name: neither the adapter nor the batch "
                "(input_ids) says the vocabulary entries of these tokens; give words= as lists"
            )
        if ids is None:
            return [[f"word {i}" for i in range(len(one))] for one in kinds]
        name: Callable[[int], str] = str if words is None else lambda i: _decoded(words, i)
        return [[name(i) for i in row] for row in ids.expand(len(kinds), -1).tolist()]
    if len(words) != len(kinds):
        raise ShapeError(f"words= names {len(words)} examples, but there are {len(kinds)}")
    return [
        _filled(example, one, named)
        for example, (one, named) in enumerate(zip(kinds, words, strict=True))
    ]


def _ids_of(batch: Mapping[str, Any], kinds: list[list[str]]) -> Tensor | None:
    """The batch's ``input_ids``, where they are of these tokens."""
    ids = batch.get("input_ids")
    fits = isinstance(ids, Tensor) and kinds and ids.shape == (len(kinds), len(kinds[0]))
    return ids if fits else None


def _decoded(tokenizer: Any, entry: int) -> str:
    text = str(tokenizer.decode([entry])).strip()
    return text or f"[{entry}]"


def _filled(example: int, kinds: list[str], words: Sequence[str]) -> list[str]:
    """A label for every token, where words are given for all or for the real ones alone."""
    for left_out in ((), ("padding",), ("padding", "special")):
        named = [i for i, kind in enumerate(kinds) if kind not in left_out]
        if len(named) == len(words):
            found = [f"[{kind}]" for kind in kinds]
            for i, word in zip(named, words, strict=True):
                found[i] = word
            return found
    real, tokens = (sum(kind in one for kind in kinds) for one in (("token", "special"), "token"))
    raise ShapeError(
        f"{_NAMES}; example {example} has {len(kinds)} tokens, {real} without padding, {tokens} "
        f"without special ones either, but {len(words)} words"
    )


# -------------------------------------------------------------------------------------- places


def _places(axis: TokenAxis, kinds: list[list[str]], *, raw: bool) -> list[list[Box | None]]:
    if raw and axis.extents is not None:
        extents = axis.extents.detach().cpu().double().expand(len(kinds), -1, -1).tolist()
        return [[_box(x) for x in row] for row in extents]
    return [_in_grid(axis, i, one) for i, one in enumerate(kinds)]


def _box(extent: Sequence[float]) -> Box | None:
    """The box of an extent, ``(4,)`` or ``(6,)``; None of one without size."""
    if len(extent) == 6:
        start, top, left, _, bottom, right = extent
    else:
        start, (top, left, bottom, right) = 0.0, extent
    if bottom <= top or right <= left:
        return None
    return (int(start), *(round(x, 5) for x in (top, left, bottom, right)))


def _in_grid(axis: TokenAxis, example: int, kinds: list[str]) -> list[Box | None]:
    """Boxes of the cells, picture after picture; special tokens and padding have none."""
    cells = _cells(axis, example)
    count = kinds.count("token")
    found = [next(cells, None) if kind == "token" else None for kind in kinds]
    if count and (found.count(None) > len(kinds) - count or next(cells, None) is not None):
        raise SignalError(
            f"nothing says where the {count} {axis.modality} tokens of example {example} lie: "
            f"their grid is {axis.grid}; the adapter's layout says it, `grid = [rows, columns]`"
        )
    return found


def _cells(axis: TokenAxis, example: int) -> Iterator[Box]:
    grid = axis.grid
    if grid is None:
        return
    grids = [grid] if isinstance(grid, tuple) else grid[min(example, len(grid) - 1)].tolist()
    for picture, (rows, columns) in enumerate(one for one in grids if one[0] * one[1]):
        for box in grid_extents((int(rows), int(columns)), WHOLE)[0].tolist():
            yield (picture, *(round(x, 5) for x in box))
