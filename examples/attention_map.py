"""Draw what any model attends to: a small ViT of transformers finds a handwritten digit.

Real scans of scikit-learn's ``load_digits`` lie in one of sixteen cells among scraps of others. The
model learns to name the digit, which takes looking at its cell. Five lines of it are distillkit's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

import distillkit as dk
from distillkit import plot

CELLS, CELL = 4, 8
SIDE = CELLS * CELL


def scenes(count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor, np.ndarray]:
    """Images ``(n, 1, 32, 32)``, the digit in each, and the cell that it lies in."""
    scans, digits = load_digits(return_X_y=True)
    scans = scans.reshape(-1, CELL, CELL) / 16
    images = np.zeros((count, CELLS, CELLS, CELL, CELL), dtype=np.float32)
    # a quarter of a scan says nothing of its digit, and looks no less like handwriting
    scraps = generator.integers(len(scans), size=(count, CELLS, CELLS))
    images[..., : CELL // 2, : CELL // 2] = scans[scraps][..., : CELL // 2, : CELL // 2]
    chosen, cell = generator.integers(len(scans), size=count), generator.integers(16, size=count)
    images[np.arange(count), cell // CELLS, cell % CELLS] = scans[chosen]
    flat = images.transpose(0, 1, 3, 2, 4).reshape(count, 1, SIDE, SIDE)
    return torch.from_numpy(flat), torch.from_numpy(digits[chosen]), cell


def trained(steps: int, generator: np.random.Generator) -> ViTForImageClassification:
    model = ViTForImageClassification(
        ViTConfig(
            image_size=SIDE, patch_size=CELL, num_channels=1, hidden_size=64, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=128, num_labels=10,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        images, digits, _ = scenes(128, generator)
        loss = F.cross_entropy(model(pixel_values=images).logits, digits)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def draw(path: Path, images: Tensor, maps: Tensor, answers: Tensor) -> None:
    """Each scene, and over it where the class token looks."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = len(images)
    figure, axes = plt.subplots(2, columns, figsize=(2.2 * columns, 4.8), layout="constrained")
    for image, attention, answer, (above, below) in zip(images, maps, answers, axes.T, strict=True):
        above.imshow(1 - image[0], cmap="gray")
        above.set(xticks=[], yticks=[])
        plot.attention_over_image(
            attention, 1 - image[0], grid=(CELLS, CELLS), largest=1, cmap="Reds", ax=below
        )
        below.set_title(f"answers {answer}", fontsize=10)
    figure.colorbar(below.images[-1], ax=axes, shrink=0.6, label="attention of the class token")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("attention_map.png"))
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    model = trained(arguments.steps, generator)
    images, digits, cell = scenes(500, generator)

    name = dk.find_attention(model, pixel_values=images[:1]).names[-1]
    with torch.no_grad(), dk.capture(model, name) as record:
        answers = model(pixel_values=images).logits.argmax(-1)
    maps = record[name].probabilities().mean(1)[:, 0, 1:]  # the class token over the patches

    looks_at = (maps.argmax(-1).numpy() == cell).mean()
    right = (answers == digits).float().mean()
    print(f"{name}: right {right:.0%}, looks at the digit's cell most {looks_at:.0%}")
    draw(arguments.out, images[:5], maps[:5], answers[:5])


if __name__ == "__main__":
    main()
