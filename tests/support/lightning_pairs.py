"""A small student and teacher whose attention is compared, with data, for the tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import distillkit as dk

WIDTH, HEADS, CLASSES = 16, 4, 3
TEXT = {"modality": "text", "length": "ids", "mask": "mask"}
IMAGE = {"modality": "image", "grid": [2, 2]}
TERMS = [
    {"loss": "kl_divergence", "on": "logits", "weight": {"start": 1.0, "stop": 0.0, "until": 1.0}},
    {"loss": "attention_kl", "on": "attention.text_to_image"},
    {"loss": "task"},
]
RECIPE = dk.Recipe(name="three terms", terms=TERMS)
FUSION = dk.DeclarativeAdapter(
    streams={"joint": "blocks.*"}, logits="logits", tokens={"joint": [TEXT, IMAGE]}
)
DUAL = dk.DeclarativeAdapter(
    streams={"text": "text", "image": "image"}, logits="logits",
    tokens={"text": [TEXT], "image": [IMAGE]},
)  # fmt: skip


class Output(NamedTuple):
    logits: Tensor


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return x + mixed.transpose(1, 2).flatten(2)


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.patches = nn.Embedding(10, WIDTH), nn.Linear(6, WIDTH)
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> Output:
        x = torch.cat([self.words(ids), self.patches(pixels)], 1)
        for block in self.blocks:
            x = block(x, torch.cat([mask, mask.new_ones(pixels.shape[:2])], 1))
        return Output(self.head(x[:, 0]))


class Dual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.patches = nn.Embedding(10, WIDTH), nn.Linear(6, WIDTH)
        self.text, self.image = Block(), Block()
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> Output:
        text = self.text(self.words(ids), mask)
        image = self.image(self.patches(pixels), mask.new_ones(pixels.shape[:2]))
        return Output(self.head(torch.cat([text[:, 0], image.mean(1)], -1)))


def examples(count: int, *, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        mask = torch.arange(5) < torch.randint(2, 6, (1,), generator=generator)
        found.append({
            "ids": torch.randint(1, 10, (5,), generator=generator) * mask, "mask": mask,
            "pixels": torch.randn(4, 6, generator=generator),
            "labels": torch.randint(CLASSES, (), generator=generator),
        })  # fmt: skip
    return found


def task_loss(output: Output, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(output.logits, batch["labels"])


def projecting() -> dk.Recipe:
    """A recipe with an aligner that learns."""
    aligner = {"name": "projector", "student_width": CLASSES, "teacher_width": CLASSES}
    return dk.Recipe(name="projected", terms=[{"loss": "mse", "on": "logits", "align": [aligner]}])
