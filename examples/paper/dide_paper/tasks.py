"""What differs between the tasks of the paper: checkpoints, data, sizes of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task of the paper.

    Attributes:
        name: as of ``ViltDualEncoderConfig``.
        teacher: the checkpoint that is taken unless another is named.
        data: data sets that fit, each with what it is for.
        batch: examples of a step, of all processes together.
        epochs: of fine-tuning; None: unknown.
        head_rate: how many times the learning rate the classifier has.
        images: how many images an example has.
        candidates: how many texts are compared for an image.
    """

    name: str
    teacher: str
    data: Mapping[str, str]
    batch: int
    epochs: int | None
    head_rate: float = 1.0
    images: int = 1
    candidates: int = 1

    @property
    def is_drawn(self) -> bool:
        """Whether its examples are drawn anew in every epoch, and have no labels of their own."""
        return self.name in ("retrieval", "pretraining")

    @property
    def recipe(self) -> str:
        """The name of its packaged recipe."""
        return f"dide_{self.name}"


TASKS = {
    task.name: task
    for task in (
        Task(
            "vqa", "dandelin/vilt-b32-finetuned-vqa",
            {"Multimodal-Fatima/VQAv2_train": "training", "lmms-lab/VQAv2": "all splits"},
            batch=256, epochs=10, head_rate=10.0,
        ),
        Task(
            "ve", "csarron/vilt-ve-ft", {"Phando/snli-ve-shuffled": "all splits"},
            batch=256, epochs=10,
        ),
        Task(
            "nlvr2", "dandelin/vilt-b32-finetuned-nlvr2",
            {"lmms-lab/NLVR2": "dev and test", "HuggingFaceM4/the_cauldron": "training, nlvr2"},
            batch=128, epochs=20, images=2,
        ),
        Task(
            "retrieval", "dandelin/vilt-b32-finetuned-flickr30k",
            {"umaru97/flickr30k_train_val_test": "Flickr30k", "bitmind/MS-COCO-unique": "COCO"},
            batch=256, epochs=10, candidates=16,
        ),
        Task(
            "pretraining", "dandelin/vilt-b32-mlm",
            {"bitmind/MS-COCO-unique": "COCO, one of the four sets that ViLT saw"},
            batch=4096, epochs=None,
        ),
    )
}  # fmt: skip

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.98)
EPSILON = 1e-8
WARM_UP = 0.1
TEXT_LENGTH = 40
