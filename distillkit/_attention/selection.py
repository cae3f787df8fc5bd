"""Tokens chosen along one axis, the same for all examples or not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Tokens = slice | Sequence[int] | Tensor


class Selection:
    """Tokens chosen along one axis of ``length``: a slice, or an index for all or per example."""

    def __init__(self, tokens: Tokens, length: int) -> None:
        self._length = length
        self._present: Tensor | None = None
        if isinstance(tokens, slice):
            self._index: slice | Tensor = tokens
            self.count = len(range(length)[tokens])
            return
        index = tokens if isinstance(tokens, Tensor) else torch.tensor(tokens, dtype=torch.long)
        if index.dtype == torch.bool and index.ndim == 1:
            index = index.nonzero()[:, 0]
        if index.dtype == torch.bool:
            counts = index.sum(-1)
            self.count = int(counts.max()) if len(counts) else 0
            packed = torch.arange(self.count, device=index.device) < counts[:, None]
            self._present = None if bool(packed.all()) else packed
            # a stable sort of "not chosen" brings the chosen tokens to the front, in order
            index = (~index).to(torch.uint8).argsort(dim=-1, stable=True)[:, : self.count]
        self._index = index
        self.count = index.shape[-1]

    def along(self, x: Tensor, axis: int) -> Tensor:
        """``x`` at the chosen tokens of ``axis``; one entry that stands for all is kept so."""
        if x.shape[axis] == 1 != self._length:
            return x
        if isinstance(self._index, slice):
            return x[(slice(None),) * axis + (self._index,)]
        if self._index.ndim == 1:
            return x.index_select(axis, self._index.to(x.device))
        shape = [1] * x.ndim
        shape[0], shape[axis] = self._index.shape
        batch = x.expand(shape[0], *x.shape[1:])
        return batch.take_along_dim(self._index.view(shape), axis)

    def present(self, axis: int) -> Tensor | None:
        """Which packed places hold a token, broadcastable to ``(b, h, q, k)``; None: all do."""
        if self._present is None:
            return None
        return self._present[:, None, :, None] if axis == 2 else self._present[:, None, None, :]
