"""CLIP-KD on a small CLIP: a student alone, and with the recipe `clip_kd`.

    python examples/clip_kd.py

A picture is four handwritten digits (scans of scikit-learn), its caption names them in order.
Teacher and students are CLIPs of transformers with tiny configurations, trained on the spot. What
is counted is how often the own caption comes first among those of 200 pictures of scans that no
training saw. No download, no GPU, about two minutes on one core.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

import distillkit as dk

CELL, DIGITS = 8, 4
END, ZERO = 1, 2  # the digit d is the word ZERO + d
TEST_SCANS, STUDENT_SCANS = 500, 400


class Sizes(NamedTuple):
    """Of both towers of a CLIP."""

    width: int
    layers: int
    projection: int


TEACHER, STUDENT = Sizes(96, 3, 64), Sizes(32, 2, 32)
Batch = dict[str, Tensor]


def clip(sizes: Sizes) -> CLIPModel:
    width, layers, projection = sizes
    both = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }  # fmt: skip
    text = {
        "vocab_size": ZERO + 10, "max_position_embeddings": DIGITS + 1, "eos_token_id": END,
        "bos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    image = {"image_size": 2 * CELL, "patch_size": CELL, "num_channels": 1}  # two rows of two
    config = CLIPConfig(
        text_config={**both, **text}, vision_config={**both, **image}, projection_dim=projection
    )
    return CLIPModel(config)


class Pairs:
    """Pictures and their captions, drawn from some scans."""

    def __init__(self, first: int, count: int | None, seed: int) -> None:
        pixels, digits = load_digits(return_X_y=True)
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
        chosen = order[first : None if count is None else first + count]
        self.pixels = torch.from_numpy(pixels).float()[chosen].view(-1, CELL, CELL) / 8 - 1
        self.digits = torch.from_numpy(digits)[chosen]
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, size: int) -> Batch:
        chosen = torch.randint(len(self.digits), (size, 2, 2), generator=self.generator)
        rows = self.pixels[chosen].permute(0, 1, 3, 2, 4)
        words = ZERO + self.digits[chosen].flatten(1)
        return {
            "input_ids": torch.cat([words, torch.full((size, 1), END)], 1),
            "pixel_values": rows.reshape(size, 1, 2 * CELL, 2 * CELL),
        }


def train(distiller: dk.Distiller | None, model: nn.Module, pairs: Pairs, steps: int) -> None:
    """By its own loss, or by the recipe's where there is a distiller."""
    trained = model if distiller is None else distiller
    trained.train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = pairs.batch(64)
        if distiller is None:
            loss = model(**batch, return_loss=True).loss
        else:
            loss = distiller({**batch, "student_return_loss": True}).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@torch.no_grad()
def recall(model: nn.Module, size: int = 200) -> float:
    """How often a picture's own caption comes first among those of ``size`` test pictures."""
    model.eval()
    batch = Pairs(0, TEST_SCANS, seed=2).batch(size)
    scores = model(**batch).logits_per_image
    own = scores.diagonal()[:, None]
    same = (batch["input_ids"][:, None] == batch["input_ids"]).all(-1)  # captions may repeat
    return ((scores > own) & ~same).any(1).logical_not().float().mean().item()


def run(*, teacher_steps: int = 600, steps: int = 400, seeds: int = 2) -> dict[str, list[float]]:
    """Recalls of the teacher and of each way to train the student, one for each seed."""
    torch.manual_seed(0)
    teacher = clip(TEACHER)
    train(None, teacher, Pairs(TEST_SCANS, None, seed=1), teacher_steps)
    rows: dict[str, list[float]] = {"teacher": [recall(teacher)], "alone": [], "clip_kd": []}
    for seed in range(seeds):
        for name in ("alone", "clip_kd"):
            torch.manual_seed(seed)
            student, pairs = clip(STUDENT), Pairs(TEST_SCANS, STUDENT_SCANS, seed=100 + seed)
            distiller = None
            if name == "clip_kd":  # widths differ: an example builds the projections
                example = {**pairs.batch(2), "student_return_loss": True}
                distiller = dk.Distiller(student, teacher, "clip_kd", example=example)
            train(distiller, student, pairs, steps)
            rows[name].append(recall(student))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=400, help="of each student")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    rows = run(teacher_steps=arguments.teacher_steps, steps=arguments.steps, seeds=arguments.seeds)
    print("own caption first of 200, pictures of scans that no training saw; mean (and each seed)")
    for name, found in rows.items():
        each = ", ".join(f"{100 * one:.1f}" for one in found)
        print(f"{name:<10}{100 * sum(found) / len(found):5.1f} %  ({each})")


if __name__ == "__main__":
    main()
