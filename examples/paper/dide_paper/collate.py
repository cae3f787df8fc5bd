"""From examples to the batch that student and teacher read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import OptionError

from .masking import mask_words
from .tasks import TEXT_LENGTH, Task


class PaperCollator:
    """Texts of 40 tokens and pictures, as ViLT's processor makes them.

    Every text is padded to the full length, since the paper's means count padded queries.

    Args:
        task: what the examples are for.
        processor: a ViLT's: ``tokenizer`` and ``image_processor``.
        mask: the part of the words that are hidden, in pre-training.
        ids: whether the batch has the entry ``"id"`` of every example, for a cache.
    """

    def __init__(
        self,
        task: Task,
        processor: Any,
        *,
        mask: float = 0.15,
        ids: bool = False,
    ) -> None:
        self.task, self.processor = task, processor
        self.mask, self.ids = mask, ids

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch.

        Raises:
            OptionError: an example with more or fewer images, or candidates, than others.
        """
        batch = self._words(examples) | self._pixels(examples)
        if self.task.candidates > 1:
            batch |= _paired(batch, self.task.candidates)
        if self.task.name == "pretraining":
            tokenizer = self.processor.tokenizer
            batch["input_ids"], batch["labels"] = mask_words(
                batch["input_ids"], batch.pop("special"), mask_id=tokenizer.mask_token_id,
                words=len(tokenizer), probability=self.mask,
            )  # fmt: skip
        elif "labels" in examples[0]:
            labels = [example["labels"] for example in examples]
            whole = isinstance(labels[0], Tensor)
            batch["labels"] = torch.stack(labels) if whole else torch.tensor(labels)
        if self.ids:
            batch["id"] = [example["id"] for example in examples]
        return batch

    def _words(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        texts = [text for one in examples for text in one.get("texts", (one.get("text"),))]
        if len(texts) != self.task.candidates * len(examples):
            raise OptionError(
                f"the task {self.task.name!r} has {self.task.candidates} texts for each example; "
                f"got {len(texts)} of {len(examples)} examples"
            )
        tokens = self.processor.tokenizer(
            texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True,
            return_special_tokens_mask=True, return_tensors="pt",
        )  # fmt: skip
        found = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        if self.task.name == "pretraining":
            found["special"] = tokens["special_tokens_mask"]
        return found

    def _pixels(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        wanted = self.task.images
        for number, example in enumerate(examples):
            if len(example["images"]) != wanted:
                raise OptionError(
                    f"example {number} has {len(example['images'])} images; the task "
                    f"{self.task.name!r} has {wanted}"
                )
        images = [image for example in examples for image in example["images"]]
        shown = self.processor.image_processor(images, return_tensors="pt")
        found = {name: shown[name] for name in ("pixel_values", "pixel_mask")}
        if wanted > 1:
            found = {name: x.unflatten(0, (len(examples), wanted)) for name, x in found.items()}
        return found


def _paired(batch: Mapping[str, Tensor], candidates: int) -> dict[str, Any]:
    """The image of every text: once for the student, once for every text for the teacher."""
    images = torch.arange(len(batch["pixel_values"]))
    index = images.repeat_interleave(candidates)
    return {
        "candidates": candidates,
        "image_index": index,
        "teacher_pixel_values": batch["pixel_values"][index],
        "teacher_pixel_mask": batch["pixel_mask"][index],
    }
