"""Acme's backbone: a fusion encoder and a dual encoder in plain PyTorch.

Neither knows of distillation. Images may have any size that is a multiple of ``PATCH``: they are
cut into patches and led by one register token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, DEPTH, PATCH = 32, 4, 2, 4
WORDS, ANSWERS, LONGEST, WIDEST = 50, 5, 16, 8


class Answer(NamedTuple):
    logits: Tensor  # (b, answers)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        b, n, _ = x.shape
        query, key, value = self.qkv(x).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keep[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x), keep)
        return x + self.mlp(x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, keep)
        return x


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS, WIDTH)
        self.place = nn.Embedding(LONGEST, WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.word(input_ids) + self.place(places)


class Patches(nn.Module):
    """``(b, 3, height, width)`` -> ``(b, 1 + rows * columns, d)``, the register first."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.row = nn.Embedding(WIDEST, WIDTH)
        self.column = nn.Embedding(WIDEST, WIDTH)
        self.register = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.cut(pixels).movedim(1, -1)  # (b, rows, columns, d)
        rows, columns = (torch.arange(n, device=pixels.device) for n in grid.shape[1:3])
        patches = grid + self.row(rows)[:, None] + self.column(columns)
        register = self.register.expand(len(pixels), 1, WIDTH)
        return torch.cat([register, patches.flatten(1, 2)], dim=1)


class FusionEncoder(nn.Module):
    """Image and text in one sequence: register, patches, words."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.words, self.encoder = Patches(), Words(), Encoder()
        self.head = nn.Linear(WIDTH, ANSWERS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixels: Tensor) -> Answer:
        patches, words = self.patches(pixels), self.words(input_ids)
        keep = attention_mask.bool()
        keep = torch.cat([keep.new_ones(patches.shape[:2]), keep], dim=1)
        x = self.encoder(torch.cat([patches, words], dim=1), keep)
        return Answer(self.head(x[:, patches.shape[1]]))  # the first word is [CLS]


class DualEncoder(nn.Module):
    """Text and image apart, joined by a small head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.words = Patches(), Words()
        self.image, self.text = Encoder(), Encoder()
        self.head = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, ANSWERS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixels: Tensor) -> Answer:
        patches = self.patches(pixels)
        image = self.image(patches, attention_mask.new_ones(patches.shape[:2]).bool())
        text = self.text(self.words(input_ids), attention_mask.bool())
        return Answer(self.head(torch.cat([text[:, 0], image[:, 0]], dim=-1)))


def sample_batch(
    examples: int = 4, *, height: int = 8, width: int = 12, seed: int = 0
) -> dict[str, Tensor]:
    """Random texts of two to six words, padded, and random images."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (examples,), generator=generator)
    mask = torch.arange(6) < lengths[:, None]
    ids = torch.randint(1, WORDS, (examples, 6), generator=generator) * mask
    pixels = torch.randn(examples, 3, height, width, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixels": pixels}
