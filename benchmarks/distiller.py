"""What the whole library costs: a DiDE step through ``Distiller`` against the same step by hand.

    python benchmarks/distiller.py --json distiller.json

By hand means: the models put their queries and keys aside, and the loop slices them, calls the
same losses and adds them up. The second table is the peak memory of a step at growing lengths.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from measure import arguments, compare, peak, report, table
from torch import Tensor, nn
from torch.nn import functional as F

import distillkit as dk
from distillkit import Attention, losses

WORDS, ANSWERS = 100, 10


class Size(NamedTuple):
    """Examples, text and image tokens, width, heads, blocks."""

    batch: int
    text: int
    image: int
    width: int
    heads: int
    depth: int


class Block(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, width = size.heads, size.width
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.kept: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, d = x.shape
        query, key, value = (
            self.qkv(self.norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        self.kept = query, key
        keep = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.mlp_norm(x))


class Encoder(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.depth))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


class Output(NamedTuple):
    logits: Tensor


class Fusion(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.words, self.encoder = nn.Embedding(WORDS, size.width), Encoder(size)
        self.head = nn.Linear(size.width, ANSWERS)

    def forward(self, text: Tensor, mask: Tensor, patches: Tensor) -> Output:
        x = torch.cat([self.words(text), patches], 1)
        keep = torch.cat([mask, mask.new_ones(patches.shape[:2])], 1)
        return Output(self.head(self.encoder(x, keep)[:, 0]))


class Dual(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, size.width)
        self.text, self.image = Encoder(size), Encoder(size)
        self.head = nn.Linear(2 * size.width, ANSWERS)

    def forward(self, text: Tensor, mask: Tensor, patches: Tensor) -> Output:
        one, other = self.text(self.words(text), mask)[:, 0], self.image(patches)[:, 0]
        return Output(self.head(torch.cat([one, other], -1)))


ADAPTER = """
inputs = {{ text = "text", mask = "mask", patches = "patches" }}
streams = {streams}
logits = "logits"
"""
TEXT = """
[[tokens.{stream}]]
modality = "text"
length = "text"
mask = "mask"
"""
IMAGE = """
[[tokens.{stream}]]
modality = "image"
length = {length}
"""


def distiller(student: Dual, teacher: Fusion, size: Size) -> dk.Distiller:
    last = size.depth - 1
    two = f'{{ text = "text.blocks.{last}", image = "image.blocks.{last}" }}'
    image = IMAGE.format(stream="image", length=size.image)
    of_student = ADAPTER.format(streams=two) + TEXT.format(stream="text") + image
    of_teacher = ADAPTER.format(streams=f'{{ joint = "encoder.blocks.{last}" }}')
    of_teacher += TEXT.format(stream="joint") + IMAGE.format(stream="joint", length=size.image)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.toml" for name in ("student", "teacher")]
        for path, text in zip(paths, (of_student, of_teacher), strict=True):
            path.write_text(text, encoding="utf-8")
        return dk.Distiller(
            student, teacher, "dide", student_adapter=paths[0], teacher_adapter=paths[1]
        )


def by_hand(student: Dual, teacher: Fusion, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        expected = teacher(**batch).logits
    logits = student(**batch).logits
    words, mask = batch["text"].shape[1], batch["mask"]
    query, key = teacher.encoder.blocks[-1].kept
    (text_query, text_key), (image_query, image_key) = (
        tower.blocks[-1].kept for tower in (student.text, student.image)
    )
    rows, keys = mask[:, None], mask[:, None, None]
    total = losses.kl_divergence(logits, expected).mean()
    pairs = [
        (
            Attention(text_query, image_key, rows=rows),
            Attention(query[:, :, :words], key[:, :, words:], rows=rows),
        ),
        (
            Attention(image_query, text_key, mask=keys),
            Attention(query[:, :, words:], key[:, :, :words], mask=keys),
        ),
    ]
    for one, other in pairs:
        values = losses.attention_kl(one, other)
        counted = losses.shared_rows(one, other)
        each = torch.where(counted, values, 0).sum((1, 2)) / counted.sum((1, 2))
        total = total + each.mean()
    return total


def setting(size: Size, device: str):
    torch.manual_seed(0)
    student, teacher = Dual(size).to(device), Fusion(size).to(device).eval()
    teacher.requires_grad_(False)
    lengths = torch.randint(size.text // 4, size.text + 1, (size.batch, 1))
    batch = {
        "text": torch.randint(WORDS, (size.batch, size.text)),
        "mask": torch.arange(size.text) < lengths,
        "patches": torch.randn(size.batch, size.image, size.width),
    }
    return student, teacher, {name: x.to(device) for name, x in batch.items()}


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    sizes = {
        "16 x (40 + 145) tokens, width 256, 4 blocks": Size(16, 40, 145, 256, 4, 4),
        "8 x (16 + 37) tokens, width 128, 2 blocks": Size(8, 16, 37, 128, 4, 2),
    }
    figures: dict[str, dict] = {}
    for name, size in sizes.items():
        student, teacher, batch = setting(size, options.device)
        whole = distiller(student, teacher, size)
        same = whole(batch).loss.item(), by_hand(student, teacher, batch).item()
        assert abs(same[0] - same[1]) < 1e-5, same  # the same step, or the comparison means nothing
        steps = {
            "by hand": lambda s=student, t=teacher, b=batch: by_hand(s, t, b).backward(),
            "Distiller": lambda w=whole, b=batch: w(b).loss.backward(),
        }
        rounds = options.rounds or (9 if options.quick else 41)
        figures[name] = compare(steps, rounds, options.device, student.zero_grad)
    memory = {}
    for tokens in (256, 512, 1024, 2048, 4096, 8192):
        size = Size(1, tokens // 2, tokens // 2, 64, 2, 1)
        student, teacher, batch = setting(size, options.device)
        whole = distiller(student, teacher, size)
        whole(batch).loss.backward()
        student.zero_grad()
        memory[tokens] = peak(lambda w=whole, b=batch: w(b).loss.backward(), options.device)
    rows = [
        [name, f"{1000 * one['by hand']['wall']:.1f} ms", f"{one['Distiller']['wall_ratio']:.3f}",
         f"{one['Distiller']['cpu_ratio']:.3f}", f"{one['Distiller']['peak_ratio']:.3f}"]
        for name, one in figures.items()
    ]  # fmt: skip
    lengths = [
        [
            str(n),
            f"{size / 2**20:.1f} MiB",
            f"{size / n / 2**10:.1f} KiB",
            f"{2 * n * n * 4 / 2**20:.0f} MiB",
        ]
        for n, size in memory.items()
    ]
    tables = {
        "A DiDE step through `Distiller`, as a part of the same step by hand (goal: at most 1.03)":
            table(["work", "by hand", "time (clock)", "time (CPU)", "peak memory"], rows),
        "Peak memory of a DiDE step, half of the tokens text, half image, 2 heads":
            table(["tokens", "peak", "per token", "one float32 map of all tokens"], lengths),
    }  # fmt: skip
    report(options, "distiller", tables, {**figures, "memory": memory})


if __name__ == "__main__":
    main()
