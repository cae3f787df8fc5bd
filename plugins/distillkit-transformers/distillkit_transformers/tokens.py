"""Tokens of texts and images, from what processors put into a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import distillkit as dk

Grid = tuple[int, int]


def text_tokens(
    batch: Mapping[str, Any],
    positions: slice | Tensor,
    *,
    special: tuple[int, ...] = (0,),
    ids: Tensor | None = None,
) -> dk.ModalityTokens:
    """A text's tokens; ``offset_mapping`` of the batch says where they lie."""
    words: Tensor = batch["input_ids"] if ids is None else ids
    extents: Tensor | None = batch.get("offset_mapping")
    if extents is not None and extents.shape[1] != words.shape[1]:
        extents = extents[:, -words.shape[1] :]  # placeholders stand before the words
    if isinstance(positions, Tensor):
        words = dk.select_tokens(words, positions)
        extents = None if extents is None else dk.select_tokens(extents, positions)
    return dk.ModalityTokens(positions, special, extents=extents, ids=words)


def image_tokens(
    batch: Mapping[str, Any],
    positions: slice | Tensor,
    grid: Grid | None,
    *,
    special: int = 0,
) -> dk.ModalityTokens:
    """An image's tokens; ``image_boxes`` of the batch says which part of it they cover."""
    boxes = batch.get("image_boxes")  # read also where it cannot be used, as it is no stray entry
    extents = None
    if boxes is not None and grid is not None:
        extents = dk.grid_extents(grid, boxes, special=special)
    return dk.ModalityTokens(positions, tuple(range(special)), grid, extents)


def mask_of(batch: Mapping[str, Any], name: str = "attention_mask") -> Tensor | None:
    """Tokens that are no padding, where the batch says so."""
    return batch[name] != 0 if name in batch else None


def grid_of(batch: Mapping[str, Any], patch: Grid | None, merge: int = 1) -> Grid | None:
    """Rows and columns of patches of ``pixel_values`` ``(..., height, width)``."""
    pixels = batch.get("pixel_values")
    if patch is None or pixels is None or pixels.ndim < 4:
        return None
    height, width = pixels.shape[-2:]
    return height // (patch[0] * merge), width // (patch[1] * merge)


def joined(parts: list[tuple[Tensor | None, int]], like: Tensor) -> Tensor | None:
    """One mask of the parts of a sequence, each with its length; None: all are real tokens."""
    if all(mask is None for mask, _ in parts):
        return None
    masks = [
        like.new_ones(len(like), length, dtype=torch.bool) if mask is None else mask
        for mask, length in parts
    ]
    return torch.cat(masks, 1)
