"""Scores of single pairs as scores over each image's candidates, ``(b, candidates)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import distillkit as dk


class ByCandidates:
    """An adapter whose ``logits`` are the scores of an image's candidates.

    A ViLT for retrieval scores one pair, ``(pairs, 1)``, and a softmax over one class teaches
    nothing: what is compared is which of an image's texts fits best.

    Args:
        adapter: of the model.
        candidates: how many texts each image has, one after another.
    """

    def __init__(self, adapter: Any, candidates: int) -> None:
        self.adapter, self.candidates = adapter, candidates
        self.streams, self.outputs = adapter.streams, adapter.outputs
        self.returns, self.sources = adapter.returns, adapter.sources
        self.entries = adapter.entries

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return self.adapter.inputs(batch)

    def layout(self, batch: Mapping[str, Any], record: dk.Record) -> dk.TokenLayout:
        return self.adapter.layout(batch, record)

    def signals(self, record: dk.Record, output: Any, layout: dk.TokenLayout) -> dk.Signals:
        found = self.adapter.signals(record, output, layout)
        scores = found["logits"].reshape(-1, self.candidates)
        return found.with_values({"logits": scores}, axes={"logits": ()})

    def examples(self, batch: Mapping[str, Any]) -> dict[str, int]:
        known = dict(self.adapter.examples(batch))
        return {**known, "logits": len(batch["input_ids"]) // self.candidates}
