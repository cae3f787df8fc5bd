"""Which entries of a map of queries x keys count: every question about that is answered here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError
from .selection import Selection

CHUNK = 1 << 22  # entries of the largest piece of a mask that is looked at in one go

Shape = tuple[int, int, int, int]


class Keep(NamedTuple):
    """The entries of a map ``(b, h, q, k)`` that count; every part broadcasts, None keeps all.

    Two questions are told apart. A *key* is dropped for a row by the mask, by the causal flag, and
    by a bias at or below half of its dtype's lowest number, which is how models write an additive
    mask. A *row* does not count where ``rows`` says so, or where no key is left to it.

    Attributes:
        shape: of the map.
        mask: boolean, True keeps.
        bias: what is added to the scores.
        causal: row i keeps the keys 0 ... i only.
        rows: boolean ``(b or 1, h or 1, q)``: the query positions that count.
    """

    shape: Shape
    mask: Tensor | None = None
    bias: Tensor | None = None
    causal: bool = False
    rows: Tensor | None = None

    @classmethod
    def checked(
        cls,
        shape: Shape,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        rows: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Keep:
        """From what a user gives.

        Raises:
            ShapeError: a part that does not broadcast, a mask that is not boolean.
        """
        if mask is not None and mask.dtype != torch.bool:
            raise ShapeError(
                f"mask is boolean, True = keep; got {mask.dtype} (additive masks are `bias`)"
            )
        mask = _with_four_axes("mask", mask, shape)
        return cls(shape, mask, _with_four_axes("bias", bias, shape), causal, _rows(rows, shape))

    def with_rows(self, rows: Tensor | None) -> Keep:
        """The same where these query positions count, ``(b, q)``; None: all."""
        return Keep(self.shape, self.mask, self.bias, self.causal, _rows(rows, self.shape))

    # entries

    def entries(self, device: torch.device) -> Tensor | None:
        """The entries that count, boolean, broadcastable to the shape; None: all do."""
        kept = self.entries_of_keys(device)
        if self.rows is not None:
            kept = both(kept, self.rows[..., None])
        return kept if self.bias is None else both(kept, is_kept(self.bias))

    def entries_of_keys(self, device: torch.device | None) -> Tensor | None:
        """The entries that mask and causal flag keep, whichever rows count; None: all."""
        if not self.causal:
            return self.mask
        _, _, q, k = self.shape
        ones = torch.ones((q, k), dtype=torch.bool, device=device)
        return both(self.mask, ones.tril()[None, None])

    def entries_of_rows(self, rows: slice, device: torch.device) -> Tensor | None:
        """The keys that some rows keep, broadcastable to ``(b, h, rows, k)``; None: all."""
        keep: Tensor | None = None
        for part in self.parts():
            block = part[:, :, rows] if part.shape[2] > 1 else part
            keep = both(keep, is_kept(block))
        if self.causal:
            _, _, q, k = self.shape
            positions = torch.arange(q, device=device)[rows]
            keep = both(keep, past_keys(positions, torch.arange(k, device=device))[None, None])
        return keep

    # methods: a compiler before torch 2.13 sees no properties of a NamedTuple, and no _replace

    def by_row(self) -> bool:
        """Whether the rows of one example and head can keep different keys."""
        return self.causal or any(part.shape[2] > 1 for part in self.parts())

    # rows

    def valid_rows(self, device: torch.device) -> Tensor:
        """The rows that count and have a key left, boolean ``(b, h, q)``.

        No map of queries x keys is made.
        """
        kept = both(self.rows_with_keys(device), self.rows)
        return all_rows(kept, self.shape, device)

    def rows_with_keys(self, device: torch.device) -> Tensor | None:
        """The rows that have a key left, ``(b or 1, h or 1, q or 1)``; None: all of them."""
        if self.shape[3] == 0:
            return torch.zeros((1, 1, 1), dtype=torch.bool, device=device)
        pieces = [keep.any(-1) for _, keep in self._pieces(device)]
        if len(pieces) < 2:
            return pieces[0] if pieces else None
        return torch.cat(pieces, 2)

    # keys

    def keys_in_use(self, rows: Tensor | None, device: torch.device) -> Tensor | None:
        """The keys that a counting row keeps, ``(b or 1, h or 1, k)``; None: all of them."""
        used: Tensor | None = None
        for chunk, keep in self._pieces(device):
            if rows is not None and keep.shape[2] == 1:  # all rows alike: does any of them count?
                keep = keep & rows.any(-1, keepdim=True)[..., None]
            elif rows is not None:
                keep = keep & rows[:, :, chunk, None]
            seen = keep.any(2)
            used = seen if used is None else used | seen
        if used is None and rows is not None:
            used = rows.any(-1, keepdim=True)
        return None if used is None else used.expand(*used.shape[:2], self.shape[3])

    # the same of other examples, rows and keys

    def map(
        self,
        function: Callable[[Tensor], Tensor],
        of_bias: Callable[[Tensor], Tensor],
        shape: Shape,
    ) -> Keep:
        """Every part through a function that keeps the axes where they are."""

        def of(part: Tensor | None) -> Tensor | None:
            return None if part is None else function(part)

        bias = None if self.bias is None else of_bias(self.bias)
        return Keep(shape, of(self.mask), bias, self.causal, of(self.rows))

    def between(self, rows: Selection, keys: Selection, device: torch.device | None) -> Keep:
        """The block of some rows and some keys."""
        b, h, _, _ = self.shape
        kept = self.entries_of_keys(device)
        mask = None if kept is None else block_of(kept, rows, keys)
        mask = both(mask, both(rows.present(2), keys.present(3)))
        bias = None if self.bias is None else block_of(self.bias, rows, keys)
        counted = None if self.rows is None else rows.along(self.rows, 2)
        return Keep((b, h, rows.count, keys.count), mask, bias, causal=False, rows=counted)

    @classmethod
    def concatenate(cls, parts: Sequence[Keep], device: torch.device) -> Keep:
        """The examples of several maps over the same heads and tokens, one after another.

        Models leave a mask out of a batch that has no padding, and one that is causal says so by a
        mask instead where there is padding, too.
        """
        sizes = [part.shape[0] for part in parts]
        causal = all(part.causal for part in parts)
        masks = [part.mask if causal else part.entries_of_keys(device) for part in parts]
        return cls(
            (sum(sizes), *parts[0].shape[1:]),
            _join(masks, sizes, nothing=True),
            _join([part.bias for part in parts], sizes, nothing=0.0),
            causal,
            _join([part.rows for part in parts], sizes, nothing=True),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that is held."""
        return [x for x in (self.mask, self.bias, self.rows) if x is not None]

    def parts(self) -> list[Tensor]:
        """The tensors that drop keys."""
        return [x for x in (self.mask, self.bias) if x is not None]

    def _pieces(self, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """The kept entries, so many rows at a time that a piece stays small."""
        q = self.shape[2]
        step = q
        if self.by_row():
            lead = [max([1, *(x.shape[axis] for x in self.parts())]) for axis in (0, 1)]
            step = max(1, min(q, CHUNK // max(1, lead[0] * lead[1] * self.shape[3])))
        for start in range(0, q, max(1, step)):
            chunk = slice(start, min(q, start + step))
            keep = self.entries_of_rows(chunk, device)
            if keep is not None:
                yield chunk, keep


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Kept by both; None keeps everything."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def both_rows(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The rows ``(b or 1, h or 1, q)`` that both keep; None: all.

    Where their numbers of heads differ, no head has a partner: a row counts where all heads of each
    side keep it, ``(b or 1, 1, q)``.
    """
    if one is not None and other is not None and not _same_heads(one, other):
        one, other = one.all(1, keepdim=True), other.all(1, keepdim=True)
    return both(one, other)


def rows_for(rows: Tensor, heads: int) -> Tensor:
    """Rows of other heads for a map of ``heads``: as they are, or where all of them keep a row."""
    return rows if rows.shape[1] in (1, heads) else rows.all(1, keepdim=True)


def all_rows(kept: Tensor | None, shape: Shape, device: torch.device) -> Tensor:
    """Rows ``(b, h, q)`` in full; without keys none counts."""
    if kept is None or shape[3] == 0:
        return torch.full(shape[:3], shape[3] > 0, device=device)
    return kept.expand(shape[:3])


def is_kept(added: Tensor) -> Tensor:
    """The entries that a mask keeps, boolean or additive."""
    if added.dtype == torch.bool:
        return added
    return added > torch.finfo(added.dtype).min / 2


def past_keys(rows: Tensor, keys: Tensor) -> Tensor:
    """The keys ``(k,)`` that rows ``(q,)`` see where row i sees the keys 0 ... i: ``(q, k)``."""
    return keys <= rows[:, None]


def block_of(x: Tensor, rows: Selection, keys: Selection) -> Tensor:
    """Some rows and keys of what broadcasts to a map."""
    return keys.along(rows.along(x, 2), 3)


def _same_heads(one: Tensor, other: Tensor) -> bool:
    return 1 in (one.shape[1], other.shape[1]) or one.shape[1] == other.shape[1]


def _join(parts: Sequence[Tensor | None], sizes: Sequence[int], *, nothing: float) -> Tensor | None:
    """One field of several parts; a part without one has ``nothing`` everywhere."""
    given = [x for x in parts if x is not None]
    if not given:
        return None
    # one entry for all heads or rows becomes one for each, where another part tells them apart
    whole = [max(lengths) for lengths in zip(*(x.shape[1:] for x in given), strict=True)]
    alone = given[0].new_full((1,) * given[0].ndim, nothing)
    filled = zip(parts, sizes, strict=True)
    return torch.cat([(alone if x is None else x).expand(b, *whole) for x, b in filled])


def _with_four_axes(name: str, x: Tensor | None, shape: Shape) -> Tensor | None:
    """A mask or bias with all four axes, each 1 or whole."""
    if x is None:
        return None
    full = x.reshape((1,) * (4 - x.ndim) + tuple(x.shape)) if x.ndim < 4 else x
    if full.ndim != 4 or not all(
        n in (1, whole) for n, whole in zip(full.shape, shape, strict=True)
    ):
        raise ShapeError(
            f"{name} of shape {tuple(x.shape)} does not broadcast to (b, h, q, k) = {tuple(shape)}"
        )
    return full


def _rows(rows: Tensor | None, shape: Shape) -> Tensor | None:
    """Rows as ``(b or 1, h or 1, q)``."""
    if rows is None:
        return None
    full = rows[:, None] if rows.ndim == 2 else rows
    b, h, q, _ = shape
    fits = full.ndim == 3 and full.shape[0] in (1, b) and full.shape[1] in (1, h)
    if rows.dtype != torch.bool or not fits or full.shape[2] != q:
        raise ShapeError(
            f"rows is boolean (b, q) or (b, 1 or h, q) for (b, h, q, k) = {tuple(shape)}; "
            f"got {rows.dtype} {tuple(rows.shape)}"
        )
    return full
