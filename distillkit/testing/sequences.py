"""The sequences of tokens that a model's first attentions consume, beside their layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .._attention import Attention
from .._backbone.layout import StreamTokens, TokenLayout
from .._capture.record import Record


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """The queries or the keys of the first attention of one stream.

    Attributes:
        stream: its name.
        side: ``"queries"`` or ``"keys"``.
        attention: the first attention.
        tokens: what the layout says of them; None: nothing.
    """

    stream: str
    side: str
    attention: Attention
    tokens: StreamTokens | None

    @property
    def entering(self) -> Tensor:
        """``(b, heads, n, d)``: what the tokens are when they meet."""
        return self.attention.query if self.side == "queries" else self.attention.key

    @property
    def length(self) -> int:
        return self.attention.shape[2 if self.side == "queries" else 3]

    def __str__(self) -> str:
        return f"{self.side} of stream {self.stream!r}"


def sequences_of(
    streams: Mapping[str, str], record: Record, layout: TokenLayout
) -> tuple[TokenSequence, ...]:
    """Queries and keys of every stream's first attention."""
    found = []
    for stream, pattern in streams.items():
        first = record.layers(pattern)[0].detach()
        query, _, key = stream.partition("_to_")
        rows = layout.get(stream) or layout.get(query)
        keys = (layout.get(key) or layout.get(stream)) if key else rows
        found.append(TokenSequence(stream, "queries", first, rows))
        found.append(TokenSequence(stream, "keys", first, keys))
    return tuple(found)


def places_of(sequence: TokenSequence, modality: str) -> Tensor:
    """Positions ``(b, m)`` of a modality's tokens in the sequence, in the layout's order.

    Where examples have unequally many, the last of an example is repeated.
    """
    assert sequence.tokens is not None
    positions = sequence.tokens[modality].positions
    b = sequence.attention.shape[0]
    if isinstance(positions, slice):
        return torch.arange(sequence.length)[positions].expand(b, -1)
    if positions.dtype != torch.bool:
        return positions
    counts = positions.sum(1)
    order = (~positions).to(torch.uint8).argsort(dim=1, stable=True)
    packed = torch.arange(int(counts.max()))[None].minimum((counts[:, None] - 1).clamp_min(0))
    return order.take_along_dim(packed, 1)


def covered(sequence: TokenSequence) -> Tensor:
    """``(b, n)``: how many modalities claim each position."""
    assert sequence.tokens is not None
    b, n = sequence.attention.shape[0], sequence.length
    counts = torch.zeros(b, n, dtype=torch.long)
    for tokens in sequence.tokens.values():
        positions = tokens.positions
        if isinstance(positions, slice):
            beyond = torch.zeros(max(n, positions.stop or n), dtype=torch.long)
            beyond[positions] = 1
            counts += beyond[:n]
            counts[:, -1:] += int(beyond[n:].any())  # a run that goes on past the end
        elif positions.dtype == torch.bool:
            counts += positions.long()
        else:
            ones = torch.ones_like(positions)
            counts.scatter_add_(1, positions.expand(b, -1), ones.expand(b, -1))
    return counts


def real_tokens(sequence: TokenSequence, length: int) -> Tensor:
    """Which tokens of a sequence are no padding, ``(b, n)``."""
    valid = None if sequence.tokens is None else sequence.tokens.valid
    shape = (sequence.attention.shape[0], length)
    return torch.ones(shape, dtype=torch.bool) if valid is None else valid
