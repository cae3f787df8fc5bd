"""An ablation's adapter: the attention over both modalities that two towers never computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import distillkit as dk
from distillkit import Attention


class WholeAttention:
    """A dual encoder's adapter that also offers ``attention.joint``.

    Queries and keys of both towers are laid one after another as the fusion encoder's tokens are,
    so that one softmax runs over words and cells.
    """

    def __init__(self, adapter: dk.DeclarativeAdapter) -> None:
        self._adapter = adapter
        self.streams: Mapping[str, str] = adapter.streams
        self.outputs, self.returns = adapter.outputs, adapter.returns
        self.inputs: Callable[..., dict[str, Any]] = adapter.inputs
        self.layout: Callable[..., dk.TokenLayout] = adapter.layout

    def signals(self, record: Any, output: Any, layout: dk.TokenLayout) -> dk.Signals:
        """The adapter's signals, and the attention over all tokens."""
        found = self._adapter.signals(record, output, layout)
        towers = [found["attention.text"], found["attention.image"]]
        places = [layout.pairs["text"], layout.pairs["image"]]
        valid = [layout["text"].valid, layout["image"].valid]
        joint = [_joint(pair, places, valid) for pair in zip(*towers, strict=True)]
        return found.with_values({"attention.joint": joint})


def _joint(
    towers: tuple[Attention, Attention], places: list[Tensor], valid: list[Tensor | None]
) -> Attention:
    parts = [tower.take(place) for tower, place in zip(towers, places, strict=True)]
    query, key = (torch.cat([getattr(p, x) for p in parts], 2) for x in ("query", "key"))
    real = [
        part.query.new_ones(len(place), part.shape[2], dtype=torch.bool)
        if mask is None
        else mask[place]
        for part, place, mask in zip(parts, places, valid, strict=True)
    ]
    kept = torch.cat(real, 1)
    return Attention(query, key, scale=parts[0].scale, mask=kept[:, None, None], rows=kept)
