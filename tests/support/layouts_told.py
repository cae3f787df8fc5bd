"""What an adapter says of a forward, as plain values that compare."""

from __future__ import annotations

import torch

import distillkit as dk


def told(adapter, model, batch):
    """(stream, modality) -> positions, special tokens and grid; (stream, "valid") -> padding."""
    with torch.no_grad():
        layout = dk.Backbone(model, adapter).trace(batch).layout
    found = {}
    for stream, tokens in layout.items():
        for modality, one in tokens.items():
            grid = one.grid.tolist() if isinstance(one.grid, torch.Tensor) else one.grid
            special, place = one.special, one.positions
            if isinstance(special, torch.Tensor):
                special = tuple(special.any(0).nonzero()[:, 0].tolist())
            if isinstance(place, torch.Tensor):
                place = place.nonzero().tolist()
            found[stream, modality] = (place, special, grid)
        found[stream, "valid"] = None if tokens.valid is None else tokens.valid.tolist()
    return found
