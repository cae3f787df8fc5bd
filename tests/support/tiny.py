"""Small real models for the tests: a fusion encoder and a dual encoder, eager and fused."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS = 16, 4


class Output(NamedTuple):
    logits: Tensor


class FusedAttention(nn.Module):
    """Self-attention through the fused kernel; remembers nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(2))


class EagerAttention(FusedAttention):
    """The same mathematics written out, with an additive mask."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores + torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(x.dtype).min)[
            :, None, None, :
        ].to(x.dtype)
        self.weights = scores.softmax(-1)
        return self.out((self.weights @ v).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Token embeddings and ``depth`` blocks."""

    def __init__(self, attention: type[FusedAttention] = FusedAttention, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(attention() for _ in range(depth))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x, mask)
        return x


class Fusion(nn.Module):
    """Text and image tokens in one sequence, text first."""

    def __init__(self, attention: type[FusedAttention] = FusedAttention, classes: int = 3) -> None:
        super().__init__()
        self.words = nn.Embedding(10, WIDTH)
        self.patches = nn.Linear(6, WIDTH)
        self.encoder = Encoder(attention)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> Output:
        x = torch.cat([self.words(ids), self.patches(pixels)], 1)
        seen = torch.cat([mask, mask.new_ones(pixels.shape[:2])], 1)
        return Output(self.head(self.encoder(x, seen)[:, 0]))


class Dual(nn.Module):
    """A text tower and an image tower."""

    def __init__(self, attention: type[FusedAttention] = FusedAttention, classes: int = 3) -> None:
        super().__init__()
        self.words = nn.Embedding(10, WIDTH)
        self.patches = nn.Linear(6, WIDTH)
        self.text, self.image = Encoder(attention), Encoder(attention)
        self.head = nn.Linear(2 * WIDTH, classes)

    def forward(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> Output:
        text = self.text(self.words(ids), mask)
        image = self.image(self.patches(pixels), mask.new_ones(pixels.shape[:2]))
        return Output(self.head(torch.cat([text[:, 0], image[:, 0]], -1)))


INPUTS = {"ids": "ids", "mask": "mask", "pixels": "pixels"}
TEXT = {"modality": "text", "length": "ids", "mask": "mask", "special": [0]}
IMAGE = {"modality": "image", "grid": [2, 2]}
FUSION_TABLES = {
    "inputs": INPUTS,
    "streams": {"joint": "encoder.blocks.*"},
    "logits": "logits",
    "tokens": {"joint": [TEXT, IMAGE]},
}
DUAL_TABLES = {
    "inputs": INPUTS,
    "streams": {"text": "text.blocks.*", "image": "image.blocks.*"},
    "logits": "logits",
    "tokens": {"text": [TEXT], "image": [IMAGE]},
}


def batch(examples: int = 3, *, seed: int = 0) -> dict[str, Tensor]:
    """Texts of 5 tokens, some padded, and images of 2 x 2 patches."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 6, (examples,), generator=generator)
    mask = torch.arange(5) < lengths[:, None]
    ids = torch.randint(1, 10, (examples, 5), generator=generator) * mask
    pixels = torch.randn(examples, 4, 6, generator=generator)
    labels = torch.randint(3, (examples,), generator=generator)
    return {"ids": ids, "mask": mask, "pixels": pixels, "labels": labels}
