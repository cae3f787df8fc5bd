"""How distillkit reads both models: where their tokens sit, and which pairs are compared."""

from __future__ import annotations

from typing import Any

import distillkit as dk

from .models import Shape

INPUTS = {name: name for name in ("words", "word_mask", "cells", "place", "text", "image")}


def teacher_adapter(shape: Shape) -> dk.DeclarativeAdapter:
    """Words and cells in one sequence, one for each pair."""
    return dk.DeclarativeAdapter(
        inputs=INPUTS,
        streams={"joint": f"encoder.blocks.{shape.depth - 1}.attention"},  # the last block
        logits="logits",
        pairs={"text": "text", "image": "image"},
        tokens={"joint": [_words(), _cells(shape)]},
    )


def student_adapter(shape: Shape) -> dk.DeclarativeAdapter:
    """Words and cells in two towers; cross-modal attention is of the pairs."""
    last = f"encoder.blocks.{shape.depth - 1}.attention"
    return dk.DeclarativeAdapter(
        inputs=INPUTS,
        streams={"text": f"text.{last}", "image": f"image.{last}"},
        logits="logits",
        pairs={"text": "text", "image": "image"},
        tokens={"text": [_words()], "image": [_cells(shape)]},
    )


def _words() -> dict[str, Any]:
    return {"modality": "text", "length": "words", "mask": "word_mask", "special": [0]}


def _cells(shape: Shape) -> dict[str, Any]:
    return {"modality": "image", "special": [0], "grid": list(shape.grid)}
