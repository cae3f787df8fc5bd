"""Which rows and keys an attention uses, without a map of queries x keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 22  # entries of the largest piece of a mask that is looked at in one go


class Masks(NamedTuple):
    """What keeps the entries of ``(b, h, q, k)``: every part broadcasts, None keeps everything."""

    mask: Tensor | None
    bias: Tensor | None
    causal: bool
    shape: tuple[int, int, int, int]

    @property
    def parts(self) -> list[Tensor]:
        """The tensors among them."""
        return [x for x in (self.mask, self.bias) if x is not None]

    @property
    def by_row(self) -> bool:
        """Whether the rows of one example and head can keep different keys."""
        return self.causal or any(x.shape[2] > 1 for x in self.parts)


def kept(masks: Masks, rows: slice, device: torch.device) -> Tensor | None:
    """The entries that some rows keep, boolean, broadcastable to ``(b, h, rows, k)``."""
    keep: Tensor | None = None
    for part in masks.parts:
        block = part[:, :, rows] if part.shape[2] > 1 else part
        if block.is_floating_point():  # an additive mask in the bias
            block = block > torch.finfo(block.dtype).min / 2
        keep = block if keep is None else keep & block
    if masks.causal:
        _, _, q, k = masks.shape
        position = torch.arange(q, device=device)[rows, None]
        past = (torch.arange(k, device=device) <= position)[None, None]
        keep = past if keep is None else keep & past
    return keep


def rows_with_keys(masks: Masks, device: torch.device) -> Tensor | None:
    """The rows that have a key left, ``(b or 1, h or 1, q or 1)``; None: all of them."""
    if masks.shape[3] == 0:
        return torch.zeros((1, 1, 1), dtype=torch.bool, device=device)
    pieces = [keep.any(-1) for _, keep in _pieces(masks, device)]
    if len(pieces) < 2:
        return pieces[0] if pieces else None
    return torch.cat(pieces, 2)


def keys_in_use(masks: Masks, rows: Tensor | None, device: torch.device) -> Tensor | None:
    """The keys that a counting row keeps, ``(b or 1, h or 1, k)``; None: all of them."""
    used: Tensor | None = None
    for chunk, keep in _pieces(masks, device):
        if rows is not None and keep.shape[2] == 1:  # all rows alike: does any of them count?
            keep = keep & rows.any(-1, keepdim=True)[..., None]
        elif rows is not None:
            keep = keep & rows[:, :, chunk, None]
        seen = keep.any(2)
        used = seen if used is None else used | seen
    if used is None and rows is not None:
        used = rows.any(-1, keepdim=True)
    return None if used is None else used.expand(*used.shape[:2], masks.shape[3])


def _pieces(masks: Masks, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """The kept entries, so many rows at a time that a piece stays small."""
    q = masks.shape[2]
    step = q
    if masks.by_row:
        lead = [max([1, *(x.shape[axis] for x in masks.parts)]) for axis in (0, 1)]
        step = max(1, min(q, CHUNK // max(1, lead[0] * lead[1] * masks.shape[3])))
    for start in range(0, q, max(1, step)):
        chunk = slice(start, min(q, start + step))
        keep = kept(masks, chunk, device)
        if keep is not None:
            yield chunk, keep
