"""The scores of one side of an attention, tile by tile."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..._attention.keep import both, is_kept, past_keys
from . import tiling
from .comparison import Side
from .divergences import DROPPED, LOWEST
from .tiling import Part, Span, Tile, of_heads, of_part


class TileScores:
    """One side of one part, cut to the rows and keys that are computed.

    What is dropped is replaced by 0 before it meets a product, whatever it held, NaN included:
    0 * NaN is NaN.

    Args:
        side: the whole side.
        part: the part.
        used: the part's keys that this side uses, ``(h or 1, keys)``; None: all of them.
        dtype: the dtype of the computation.
    """

    def __init__(self, side: Side, part: Part, used: Tensor | None, dtype: torch.dtype) -> None:
        self.side = side
        self._part = part
        self._used = used
        self._dtype = dtype
        self._query = of_part(side.query, part.number)[:, part.rows]
        self._key = of_part(side.key, part.number)[:, part.keys]
        self._keep = side.keep
        self._by_row = self._keep.by_row()
        self._cached_keys: tuple[slice, Tensor] | None = None

    def queries(self, tile: Tile) -> Tensor:
        """``(heads, rows, d)``; 0 where a row does not count."""
        query = self._query[tile.heads, tile.rows]
        if query.dtype != self._dtype:
            query = query.to(self._dtype)
        counted = tile.counted
        return query if counted is None else torch.where(counted, query, 0)

    def keys(self, tile: Tile) -> Tensor:
        """``(key heads, keys, d)``; 0 for a key that nobody uses."""
        heads = self.key_heads(tile)
        if self._cached_keys is None or self._cached_keys[0] != heads:  # tiles of a head in a row
            key = self._key[heads].to(self._dtype)
            if self._used is not None:
                used = self._used
                if used.shape[0] > 1:
                    used = used.view(-1, self.side.sharing, used.shape[-1]).any(1)
                key = torch.where(of_heads(used, heads)[..., None], key, 0)
            self._cached_keys = heads, key
        return self._cached_keys[1][:, : tile.keys]

    def key_heads(self, tile: Tile) -> slice:
        """The key heads that a tile's heads read."""
        sharing = self.side.sharing
        return slice(tile.heads.start // sharing, -(-tile.heads.stop // sharing))

    def write_products(self, tile: Tile, out: Tensor) -> None:
        """The tile's scores without bias or mask, into ``out`` (heads, rows, keys)."""
        query, key = self.queries(tile), self.keys(tile)
        folded, groups = grouped(query, key), grouped(out, key)
        torch.baddbmm(groups, folded, key.mT, beta=0, alpha=self.side.factor, out=groups)

    def write_scores(self, tile: Tile, out: Tensor) -> None:
        """The tile's scores, :data:`DROPPED` where nothing is kept, into ``out``."""
        self.write_products(tile, out)
        added = self._added(tile)
        if added is not None:
            out += added

    def keep(self, tile: Tile) -> Tensor | None:
        """The tile's kept entries, broadcastable to (heads, rows, keys); None: all."""
        if self._by_row:
            return self._compute_keep(tile.heads, tile.row_span, tile.key_span)
        return _of_heads_or_none(self._keep_of_every_row, tile.heads)

    def bias(self, tile: Tile) -> Tensor | None:
        """The tile's softened bias, broadcastable to (heads, rows, keys), where there is any."""
        if self._by_row:
            return self._compute_bias(tile.heads, tile.row_span, tile.key_span)
        return _of_heads_or_none(self._bias_of_every_row, tile.heads)

    def _added(self, tile: Tile) -> Tensor | None:
        """What is added to the products: the bias, and :data:`DROPPED` where nothing is kept."""
        if self._by_row:
            return self._join(self.keep(tile), self.bias(tile))
        return _of_heads_or_none(self._added_to_every_row, tile.heads)

    # where all rows keep the same keys, one row of mask and bias serves every tile of the part

    @cached_property
    def _all_heads(self) -> slice:
        return slice(0, self.side.query.shape[1])

    @cached_property
    def _keep_of_every_row(self) -> Tensor | None:
        keep = self._compute_keep(self._all_heads, self._part.rows, self._part.keys)
        if keep is not None and tiling.can_sync(keep.device) and bool(keep.all()):
            return None
        return keep

    @cached_property
    def _bias_of_every_row(self) -> Tensor | None:
        bias = self._compute_bias(self._all_heads, self._part.rows, self._part.keys)
        if bias is None:
            return None
        keep = self._keep_of_every_row
        bias = bias if keep is None else torch.where(keep, bias, 0)
        return None if tiling.can_sync(bias.device) and not bool(bias.any()) else bias

    @cached_property
    def _added_to_every_row(self) -> Tensor | None:
        return self._join(self._keep_of_every_row, self._bias_of_every_row)

    def _join(self, keep: Tensor | None, bias: Tensor | None) -> Tensor | None:
        if keep is None:
            return bias
        if bias is None:
            zeros = torch.zeros(keep.shape, dtype=self._dtype, device=keep.device)
            return zeros.masked_fill_(~keep, DROPPED)
        return torch.where(keep, bias, DROPPED)

    def _compute_bias(self, heads: slice, rows: Span, keys: Span) -> Tensor | None:
        if self.side.bias is None:
            return None
        bias = _cut_map(self.side.bias, self._part.number, heads, rows, keys).to(self._dtype)
        return (bias / self.side.temperature).clamp_min(LOWEST)

    def _compute_keep(self, heads: slice, rows: Span, keys: Span) -> Tensor | None:
        keep: Tensor | None = None
        for part in self._keep.parts():
            keep = both(keep, is_kept(_cut_map(part, self._part.number, heads, rows, keys)))
        if self.side.causal:
            device = self.side.query.device
            keep = both(keep, past_keys(_indices(rows, device), _indices(keys, device))[None])
        return keep


def grouped(x: Tensor, key: Tensor) -> Tensor:
    """Query heads that share a key head, ``(heads, rows, .) -> (key heads, heads x rows, .)``."""
    heads = key.shape[0]
    return x if x.shape[0] == heads else x.reshape(heads, -1, x.shape[-1])


def _of_heads_or_none(x: Tensor | None, heads: slice) -> Tensor | None:
    return None if x is None else of_heads(x, heads)


def _cut_map(x: Tensor, number: int | None, heads: slice, rows: Span, keys: Span) -> Tensor:
    """A tile of a mask or bias, each axis of which is 1 or whole."""
    x = x[number if number is not None and x.shape[0] > 1 else 0]
    x = of_heads(x, heads)
    x = x[:, rows] if x.shape[1] > 1 else x
    return x[:, :, keys] if x.shape[2] > 1 else x


def _indices(span: Span, device: torch.device) -> Tensor:
    if isinstance(span, slice):
        return torch.arange(span.start, span.stop, device=device)
    return span
