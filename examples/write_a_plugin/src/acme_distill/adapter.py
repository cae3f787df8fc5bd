"""What distillkit has to know of Acme's models, and cannot see by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import distillkit as dk

from .models import PATCH, FusionEncoder


class AcmeAdapter:
    """The adapter of both models: where their tokens sit, for images of any size."""

    def __init__(self, model: nn.Module) -> None:
        self._fused = isinstance(model, FusionEncoder)
        towers = ("joint",) if self._fused else ("text", "image")
        roots = {"joint": "encoder", "text": "text", "image": "image"}
        self._declared = dk.DeclarativeAdapter(
            inputs={name: name for name in ("input_ids", "attention_mask", "pixels")},
            streams={tower: f"{roots[tower]}.blocks.*.attention" for tower in towers},
            logits="logits",
        )
        self.streams = self._declared.streams
        self.outputs = self.returns = ()  # no further module or method is listened to

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return self._declared.inputs(batch)

    def layout(self, batch: Mapping[str, Any], record: Any) -> dk.TokenLayout:
        """One register and the patches; then, or in a tower of their own, the words."""
        del record
        rows, columns = (side // PATCH for side in batch["pixels"].shape[-2:])
        words = batch["attention_mask"].bool()
        patches = words.new_ones(len(words), 1 + rows * columns)
        image = _tokens(patches, start=0, grid=(rows, columns))
        if self._fused:
            text = _tokens(words, start=patches.shape[1])
            joint = dk.StreamTokens({"image": image, "text": text}, torch.cat([patches, words], 1))
            return dk.TokenLayout({"joint": joint})
        text = _tokens(words, start=0)
        return dk.TokenLayout(
            {
                "text": dk.StreamTokens({"text": text}, words),
                "image": dk.StreamTokens({"image": image}, patches),
            }
        )

    def signals(self, record: Any, output: Any, layout: dk.TokenLayout) -> dk.Signals:
        return self._declared.signals(record, output, layout)


def _tokens(valid: Tensor, *, start: int, grid: tuple[int, int] | None = None) -> dk.ModalityTokens:
    """A run of tokens whose first stands for no word or patch."""
    return dk.ModalityTokens(slice(start, start + valid.shape[1]), special=(0,), grid=grid)
