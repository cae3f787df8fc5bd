"""Batches with one thing changed: another image, other words, one word fewer, one example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._backbone.adapter import Adapter
from .._backbone.layout import TokenLayout
from ..errors import SignalError
from .verdicts import NotApplicable
from .words import Words, is_mask, is_whole_numbers, words_of


def images_of_batch(batch: Mapping[str, Any], adapter: Adapter) -> dict[str, Tensor]:
    """The floating-point entries that the model is called with and that are no masks."""
    given = adapter.inputs(batch).values()
    found = {
        name: x for name, x in batch.items() if any(x is one for one in given) and is_content(x)
    }
    if not found:
        raise SignalError(
            "the batch has no image: no floating-point entry that the model is called with"
        )
    return found


def changed_image(batch: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    """The same batch with other images: every floating-point input that is no mask."""
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: x + torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x) + 0.1
        for name, x in images_of_batch(batch, adapter).items()
    }
    return {**batch, **changed}


def changed_text(batch: Mapping[str, Any], words: Words) -> dict[str, Any]:
    """The same batch with another word at every place that is one."""
    ids: Tensor = batch[words.entry]
    return {**batch, words.entry: _exchanged(ids, words.marked(words.are_words, ids.shape))}


def _exchanged(entry: Tensor, places: Tensor) -> Tensor:
    """Another of the values that stand at some places, at each of them."""
    values = torch.unique(entry[places])
    if len(values) < 2:
        raise SignalError("the batch's texts have one word only: give them several")
    bounded = entry.clamp(int(values[0]), int(values[-1])).contiguous()
    following = torch.searchsorted(values, bounded)
    return torch.where(places, values[(following + 1) % len(values)], entry)


def richer_entries(batch: Mapping[str, Any], words: Words) -> dict[str, dict[str, Any]]:
    """Entries of more values than the words' own -> the batch with that one changed instead."""
    ids: Tensor = batch[words.entry]
    places = words.marked(words.are_words, ids.shape)
    found = {}
    for name, x in batch.items():
        if name == words.entry or not is_whole_numbers(x) or x.shape != ids.shape:
            continue
        if len(torch.unique(x[places])) > len(torch.unique(ids[places])):
            found[name] = {**batch, name: _exchanged(x, places)}
    return found


def without_last_word(
    batch: Mapping[str, Any], layout: TokenLayout
) -> tuple[dict[str, Any], Words]:
    """The same batch with the last word of the first text masked, and what its words were."""
    words = words_of(batch, layout)
    are_words = words.are_words
    shape = batch[words.entry].shape
    places = words.marked(are_words, shape)
    masks = [
        name
        for name, x in batch.items()
        if isinstance(x, Tensor) and x.shape == shape and name != words.entry
        and is_mask(x) and bool((x[places] == 1).all())
    ]  # fmt: skip
    counts = [name for name, x in batch.items() if _counts_words(x, words, shape)]
    row = int(words.rows[0])
    if int(are_words[0].sum()) < 2 or not (masks or counts):
        raise NotApplicable("the batch has no mask of its words, or one word only")
    last = int(words.columns[0][are_words[0]].max())
    changed = {name: batch[name].clone() for name in (*masks, *counts)}
    for name in masks:
        changed[name][row, last] = 0
    for name in counts:
        changed[name][row] -= 1
    return {**batch, **changed}, words


def _counts_words(x: Any, words: Words, shape: torch.Size) -> bool:
    """Whether an entry says how many tokens of each text are real, up to the last word."""
    if not isinstance(x, Tensor) or x.ndim != 1 or x.is_floating_point() or len(x) != shape[0]:
        return False
    real = words.marked(words.present & words.valid, shape)
    last = words.are_words[0].nonzero()[-1:]
    ends_in_word = bool((words.valid & words.present)[0].nonzero()[-1:].eq(last).all())
    return x.dtype != torch.bool and torch.equal(x, real.sum(1)) and ends_in_word


def first_pair(
    batch: Mapping[str, Any], adapter: Adapter, layout: TokenLayout, examples: int
) -> dict[str, Any]:
    """The first example, or where texts and images are paired, those of the first pair.

    Of packed entries, it is the first part of as many as there are examples.
    """
    if not layout.pairs:
        packed = _packed(layout, examples)
        return {name: _first_part(x, examples, packed) for name, x in batch.items()}
    of_text = len(batch[words_of(batch, layout).entry])
    of_image = len(next(iter(images_of_batch(batch, adapter).values())))
    at = {m: int(index[0]) for m, index in layout.pairs.items()}
    found = {}
    for name, x in batch.items():
        if not isinstance(x, Tensor) or not x.ndim:
            found[name] = x
        elif any(x is index or _same(x, index) for index in layout.pairs.values()):
            found[name] = torch.zeros_like(x[:1])
        elif len(x) == of_image and (len(x) != of_text or x.is_floating_point()):
            start = at.get("image", 0)
            found[name] = x[start : start + 1]
        elif len(x) == of_text:
            start = at.get("text", 0)
            found[name] = x[start : start + 1]
        else:
            found[name] = x[:1]
    return found


def _same(x: Tensor, index: Tensor) -> bool:
    return x.shape == index.shape and x.dtype == index.dtype and torch.equal(x, index)


def _packed(layout: TokenLayout, examples: int) -> list[tuple[int, int]]:
    """Of images and of their patches, how many there are and how many of the first example.

    Nothing, where every example has as many.
    """
    for tokens in layout.values():
        grid = tokens["image"].grid if "image" in tokens else None
        if isinstance(grid, Tensor) and len(grid) == examples:
            cells = grid.prod(2)
            counts = [((cells > 0).sum(1)).tolist(), cells.sum(1).tolist()]
            if any(len(set(one)) > 1 for one in counts):
                return [(sum(one), one[0]) for one in counts]
    return []


def _first_part(x: Any, examples: int, packed: list[tuple[int, int]]) -> Any:
    """An entry's rows of the first example."""
    if not isinstance(x, Tensor) or not x.ndim or not len(x):
        return x
    if len(x) != examples:
        for total, first in packed:
            if len(x) % total == 0:
                return x[: len(x) // total * first]
    return x[: len(x) // examples] if len(x) % examples == 0 else x


def other_by_its_spread(x: Tensor, whole: Tensor) -> Tensor:
    """Other numbers, as far from these as the whole spreads."""
    generator = torch.Generator().manual_seed(2)
    signs = torch.rand(x.shape, generator=generator).to(x) + 0.5
    return x + 3 * whole.std().clamp_min(0.1) * signs


def is_content(x: Any) -> bool:
    """Whether an entry may be an image: floating point with axes, and no mask."""
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2 and not is_mask(x)
