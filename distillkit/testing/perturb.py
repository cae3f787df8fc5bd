"""Batches with one thing changed: another image, another text, one word fewer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._backbone.adapter import Adapter
from .._backbone.layout import ModalityTokens, TokenLayout
from .._backbone.tokens import select_tokens
from ..errors import SignalError


class NotApplicable(Exception):  # noqa: N818 (no error: the model has nothing to check)
    """The model has nothing that a check could look at."""


def changed_image(batch: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    """The same batch with other images: every floating-point input that is no mask."""
    given = adapter.inputs(batch).values()
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: x + torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x) + 0.1
        for name, x in batch.items()
        if any(x is one for one in given) and _is_content(x)
    }
    if not changed:
        raise SignalError(
            "the batch has no image: no floating-point entry that the model is called with"
        )
    return {**batch, **changed}


def changed_text(batch: Mapping[str, Any], layout: TokenLayout) -> tuple[dict[str, Any], Tensor]:
    """The same batch with other words, and which text tokens ``(b, m)`` they are."""
    name, tokens, stream = _text_entry(batch, layout)
    ids: Tensor = batch[name]
    is_text = _is_text(ids, tokens, layout, stream)
    words = torch.unique(ids[is_text])
    if len(words) < 2:
        raise SignalError("the batch's texts have one word only: give them several")
    following = torch.searchsorted(words, ids.clamp(int(words[0]), int(words[-1])).contiguous())
    other = torch.where(is_text, words[(following + 1) % len(words)], ids)
    changed = is_text
    if isinstance(tokens.positions, Tensor):
        if tokens.positions.shape[1] == ids.shape[1]:
            changed = select_tokens(is_text.long(), tokens.positions).bool()
    elif tokens.ids is not None and tokens.ids.shape[1] < ids.shape[1]:
        changed = is_text[:, -tokens.ids.shape[1] :]
    return {**batch, name: other}, changed


def without_last_word(batch: Mapping[str, Any], layout: TokenLayout) -> tuple[dict[str, Any], str]:
    """The same batch with the last word of the first text masked, and the stream that has it."""
    name, tokens, stream = _text_entry(batch, layout)
    is_text = _is_text(batch[name], tokens, layout, stream)
    masks = [
        mask
        for mask, x in batch.items()
        if isinstance(x, Tensor) and x.shape == batch[name].shape and mask != name
        and _is_mask(x) and bool((x[is_text] == 1).all())
    ]  # fmt: skip
    if not masks or int(is_text[0].sum()) < 2:
        raise NotApplicable("the batch has no mask of its words, or one word only")
    last = int(is_text[0].nonzero()[-1])
    changed = {}
    for mask in masks:
        changed[mask] = batch[mask].clone()
        changed[mask][0, last] = 0
    return {**batch, **changed}, stream


def first_example(batch: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The first of ``size`` examples: of packed entries, the first part of as many."""
    return {
        name: x[: len(x) // size]
        if isinstance(x, Tensor) and x.ndim and len(x) % size == 0 and len(x)
        else x
        for name, x in batch.items()
    }


def _text_entry(batch: Mapping[str, Any], layout: TokenLayout) -> tuple[str, ModalityTokens, str]:
    """The entry that holds the words, and the tokens of the layout that they are."""
    found = [(s, tokens["text"]) for s, tokens in layout.items() if "text" in tokens]
    if not found:
        raise NotApplicable("no stream has text tokens")
    stream, tokens = found[0]
    entries = [
        name
        for name, x in batch.items()
        if isinstance(x, Tensor) and x.ndim == 2 and not x.is_floating_point() and not _is_mask(x)
    ]
    for name in entries:
        if tokens.ids is not None and _holds(batch[name], tokens):
            return name, tokens, stream
    if tokens.ids is None and len(entries) == 1:
        return entries[0], tokens, stream
    raise SignalError(
        f"cannot tell which of the entries {', '.join(map(repr, entries)) or 'none'} holds the "
        "words: let the layout say so, ModalityTokens(..., ids=batch[...])"
    )


def _holds(ids: Tensor, tokens: ModalityTokens) -> bool:
    assert tokens.ids is not None
    if isinstance(tokens.positions, Tensor) and tokens.positions.shape[1] == ids.shape[1]:
        ids = select_tokens(ids, tokens.positions)
    width = tokens.ids.shape[1]
    return ids.shape[1] >= width and torch.equal(ids[:, ids.shape[1] - width :], tokens.ids)


def _is_text(ids: Tensor, tokens: ModalityTokens, layout: TokenLayout, stream: str) -> Tensor:
    """The places in the entry that are words: no special token, no padding, no image."""
    valid = layout[stream].valid
    if isinstance(tokens.positions, Tensor) and tokens.positions.dtype == torch.bool:
        is_text = tokens.positions if valid is None else tokens.positions & valid
        return is_text.clone()
    width = ids.shape[1] if tokens.ids is None else tokens.ids.shape[1]
    is_text = torch.ones(len(ids), width, dtype=torch.bool)
    if valid is not None and isinstance(tokens.positions, slice):
        is_text = valid[:, tokens.positions].clone()
    if is_text.shape[1] != width:
        raise SignalError(
            f"the layout places {width} words at {is_text.shape[1]} positions of {stream!r}"
        )
    is_text[:, list(tokens.special)] = False
    before = torch.zeros(len(ids), ids.shape[1] - width, dtype=torch.bool)
    return torch.cat([before, is_text], 1)


def _is_content(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2 and not _is_mask(x)


def _is_mask(x: Tensor) -> bool:
    return x.dtype == torch.bool or bool(((x == 0) | (x == 1)).all())
