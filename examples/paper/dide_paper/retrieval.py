"""Retrieval with a student: everything is encoded once, and every pair is scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from distillkit_transformers import ViltDualEncoder
from torch import Tensor

from .data import picture
from .negatives import recalls
from .tasks import TEXT_LENGTH


class Scorer:
    """Scores of images with captions.

    Args:
        student: of the task ``"retrieval"``.
        processor: a ViLT's.
        rows: a data set, or any sequence of rows.
        column: the column of the images.
        captions: the captions of every row.
        size: how many are encoded at a time.
    """

    def __init__(
        self,
        student: ViltDualEncoder,
        processor: Any,
        rows: Any,
        column: str,
        captions: Sequence[Sequence[str]],
        *,
        size: int = 64,
    ) -> None:
        self.student, self.processor, self.rows = student, processor, rows
        self.column, self.captions, self.size = column, captions, size

    @torch.no_grad()
    def __call__(self, rows: Sequence[int], places: Sequence[tuple[int, int]]) -> Tensor:
        """Scores ``(rows, places)``, where a place is ``(row, number)`` of a caption."""
        was_training = self.student.training
        self.student.eval()
        try:
            images = torch.cat([self._images(part) for part in _parts(rows, self.size)])
            texts = torch.cat([self._texts(part) for part in _parts(places, self.size)])
            return torch.stack([self._scores(texts, image) for image in images])
        finally:
            self.student.train(was_training)

    def recalls(self) -> dict[str, float]:
        """Recall of all rows with all captions."""
        places = [(row, i) for row, own in enumerate(self.captions) for i in range(len(own))]
        scores = self(range(len(self.captions)), places)
        own = torch.tensor([row for row, _ in places], device=scores.device)
        return recalls(scores, own)

    def _scores(self, texts: Tensor, image: Tensor) -> Tensor:
        """Of all texts with one image, ``(texts,)``."""
        both = torch.cat([texts, image.expand(len(texts), -1)], 1)
        return self.student.rank_output(self.student.fusion(both))[:, 0]

    def _images(self, rows: Sequence[int]) -> Tensor:
        images = [picture(self.rows[row][self.column]) for row in rows]
        shown = self.processor.image_processor(images, return_tensors="pt")
        given = [shown[name].to(self.student.device) for name in ("pixel_values", "pixel_mask")]
        return self.student.encode_image(*given).pooled

    def _texts(self, places: Sequence[tuple[int, int]]) -> Tensor:
        texts = [self.captions[row][number] for row, number in places]
        tokens = self.processor.tokenizer(
            texts, padding=True, max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
        )
        given = [tokens[name].to(self.student.device) for name in ("input_ids", "attention_mask")]
        return self.student.encode_text(*given).pooled


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
