"""Where in a batch the words of a layout's text tokens stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._backbone.layout import ModalityTokens, TokenLayout
from ..errors import SignalError
from .verdicts import NotApplicable


@dataclass(frozen=True, eq=False)
class Words:
    """The words of a text, in the batch and in the layout.

    Attributes:
        entry: the batch entry that holds them.
        stream: the stream that has them.
        tokens: what the layout says of them.
        rows: the row of the entry that each sequence reads, ``(b,)``.
        columns: the column of the entry that each text token is, ``(b, m)``.
        present: which tokens there are, where examples have unequally many, ``(b, m)``.
        valid: which of them are no padding, ``(b, m)``.
        special: which of them the layout calls special, ``(b, m)``.
    """

    entry: str
    stream: str
    tokens: ModalityTokens
    rows: Tensor
    columns: Tensor
    present: Tensor
    valid: Tensor
    special: Tensor

    @property
    def are_words(self) -> Tensor:
        """``(b, m)``: no padding and no special token."""
        return self.present & self.valid & ~self.special

    def marked(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """Of some text tokens ``(b, m)``, which places of the entry they are."""
        found = torch.zeros(shape, dtype=torch.bool)
        example, token = tokens.nonzero(as_tuple=True)
        found[self.rows[example], self.columns[example, token]] = True
        return found

    def at_tokens(self, entry: Tensor) -> Tensor:
        """The values of an entry at the text tokens, ``(b, m)``."""
        return entry[self.rows].take_along_dim(self.columns, 1)


def words_of(batch: Mapping[str, Any], layout: TokenLayout) -> Words:
    """Where the words of a layout stand.

    Raises:
        NotApplicable: no stream has text tokens.
        SignalError: no entry of the batch holds the vocabulary entries that the layout has, or
            several could.
    """
    found = [(s, tokens["text"]) for s, tokens in layout.items() if "text" in tokens]
    if not found:
        raise NotApplicable("no stream has text tokens")
    stream, tokens = found[0]
    entries = {name: x for name, x in batch.items() if is_whole_numbers(x)}
    meet = "image" in layout[stream]
    for name, x in entries.items():
        rows = layout.pairs.get("text") if meet else None
        rows = torch.arange(len(x)) if rows is None else rows
        aligned = _aligned(x, tokens, rows)
        if aligned is not None and (tokens.ids is not None or len(entries) == 1):
            columns, present = aligned
            valid = _valid(layout, stream, tokens, present)
            special = special_mask_of(tokens, present)
            return Words(name, stream, tokens, rows, columns, present, valid, special)
    listed = ", ".join(map(repr, entries)) or "none"
    if tokens.ids is None:
        raise SignalError(
            f"cannot tell which of the entries {listed} holds the words: say so, `ids` in an "
            "adapter file, or ModalityTokens(..., ids=batch[...])"
        )
    raise SignalError(
        f"none of the entries {listed} holds the vocabulary entries that the layout of stream "
        f"{stream!r} has for its text: its positions and ids do not fit together"
    )


def special_mask_of(tokens: ModalityTokens, present: Tensor) -> Tensor:
    """Which of a modality's tokens are special, ``(b, m)``."""
    if isinstance(tokens.special, Tensor):
        return tokens.special.expand(present.shape)
    mask = torch.zeros_like(present)
    inside = [place for place in tokens.special if place < present.shape[1]]
    mask[:, inside] = True
    return mask


def is_whole_numbers(x: Any) -> bool:
    """Whether an entry could hold vocabulary entries: integers ``(b, n)`` and no mask."""
    return isinstance(x, Tensor) and x.ndim == 2 and not x.is_floating_point() and not is_mask(x)


def is_mask(x: Tensor) -> bool:
    """Whether a tensor holds nothing but 0 and 1."""
    return x.dtype == torch.bool or bool(((x == 0) | (x == 1)).all())


def _aligned(entry: Tensor, tokens: ModalityTokens, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """The column of the entry that each token is, and which tokens there are; None: none fits."""
    place, present = places_in_sequence(tokens.positions, len(rows))
    if len(place) != len(rows) or (len(rows) and int(rows.max()) >= len(entry)):
        return None
    width = entry.shape[1]
    read = entry[rows]
    first = int(torch.where(present, place, place.max()).min()) if place.numel() else 0
    for start in range(first - width, first + 1):
        columns = place - start
        fits = (columns >= 0) & (columns < width)
        if not bool((fits | ~present).all()):
            continue
        columns = columns.clamp(0, width - 1)
        if tokens.ids is None:
            if place.shape[1] == width or start == 0:
                return columns, present
        elif tokens.ids.shape == columns.shape:
            same = read.take_along_dim(columns, 1) == tokens.ids
            if bool((same | ~present).all()):
                return columns, present
    return None


def places_in_sequence(positions: slice | Tensor, examples: int) -> tuple[Tensor, Tensor]:
    """Where each token sits in the sequence, ``(b, m)``, and which of them there are."""
    if isinstance(positions, slice):
        place = torch.arange(positions.start or 0, positions.stop).expand(examples, -1)
        return place, torch.ones_like(place, dtype=torch.bool)
    if positions.dtype != torch.bool:
        return positions, torch.ones_like(positions, dtype=torch.bool)
    counts = positions.sum(1, keepdim=True)
    order = (~positions).to(torch.uint8).argsort(dim=1, stable=True)
    order = order[:, : int(counts.max()) if len(counts) else 0]
    return order, torch.arange(order.shape[1]) < counts


def _valid(layout: TokenLayout, stream: str, tokens: ModalityTokens, present: Tensor) -> Tensor:
    valid = layout[stream].valid
    if valid is None:
        return torch.ones_like(present)
    place, _ = places_in_sequence(tokens.positions, len(present))
    if int(place.max()) >= valid.shape[1]:
        raise SignalError(
            f"the layout places words at position {int(place.max())} of stream {stream!r}, whose "
            f"padding is told for {valid.shape[1]} tokens"
        )
    return valid.expand(len(place), -1).take_along_dim(place, 1)
