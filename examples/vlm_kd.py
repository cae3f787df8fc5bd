"""LLaVA-KD on a small LLaVA: a student alone, with its answers distilled, and with recipe `vlm_kd`.

    python examples/vlm_kd.py

A picture is a grid of nine handwritten digits (scans of scikit-learn). A prompt asks for the digit
of a cell, or for the three of a row; the response is digits and an end. Teacher and students are
LLaVAs of transformers with tiny configurations, trained on the spot. Scans of tests are in no
training, and the students see fewer scans than their teacher did. No download, no GPU, some minutes
on one core; --seeds 1 halves them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

import distillkit as dk

WORDS = (
    "[pad]",
    "[end]",
    "[image]",
    *map(str, range(10)),
    "row",
    "column",
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
)
PAD, END, IMAGE, ZERO = 0, 1, 2, 3  # the digit d is the word ZERO + d
ROW, COLUMN, FIRST_ROW, FIRST_COLUMN = 13, 14, 15, 18
GRID, CELL = 3, 8
TEACHER_SCANS, STUDENT_SCANS, TEST_SCANS = 1200, 300, 500


class Sizes(NamedTuple):
    """Of both parts of a LLaVA."""

    width: int
    layers: int
    heads: int


TEACHER, STUDENT = Sizes(96, 3, 6), Sizes(32, 2, 4)
Batch = dict[str, Tensor]


def llava(sizes: Sizes) -> LlavaForConditionalGeneration:
    width, layers, heads = sizes
    both = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }  # fmt: skip
    text = {
        "model_type": "llama", "vocab_size": len(WORDS), "num_key_value_heads": heads,
        "max_position_embeddings": 32, "initializer_range": 0.1,
        "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": None,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "image_size": GRID * CELL, "patch_size": CELL,
        "num_channels": 1,
    }  # fmt: skip
    config = LlavaConfig(
        text_config={**both, **text}, vision_config={**both, **vision},
        image_token_id=IMAGE, vision_feature_layer=-1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def scans(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Scans ``(n, 8, 8)`` in [-1, 1] in one shuffled order, and their digits."""
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    chosen = order[first : first + count]
    pixels = torch.from_numpy(pixels).float()[chosen].view(-1, CELL, CELL) / 8 - 1
    return pixels, torch.from_numpy(digits)[chosen]


class Scenes:
    """Pictures, prompts and responses, drawn from some scans."""

    def __init__(self, first: int, count: int, seed: int) -> None:
        self.pixels, self.digits = scans(first, count)
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, size: int) -> tuple[Tensor, list[list[int]], list[list[int]]]:
        """Pictures ``(b, 1, 24, 24)``, the words of each prompt, the words of each response."""
        chosen = torch.randint(len(self.digits), (size, GRID, GRID), generator=self.generator)
        pictures = self.pixels[chosen].permute(0, 1, 3, 2, 4).reshape(size, 1, GRID * CELL, -1)
        asked = torch.randint(GRID, (size, 3), generator=self.generator).tolist()
        prompts, responses = [], []
        for digits, (row, column, kind) in zip(self.digits[chosen].tolist(), asked, strict=True):
            prompt, answer = [ROW, FIRST_ROW + row], digits[row]
            if kind:  # two of three prompts ask for one cell
                prompt, answer = [*prompt, COLUMN, FIRST_COLUMN + column], [answer[column]]
            prompts.append([IMAGE] * GRID**2 + prompt)
            responses.append([*(ZERO + digit for digit in answer), END])
        return pictures, prompts, responses

    def batch(self, size: int) -> Batch:
        """Prompts with responses, padded on the right; labels are the response's tokens."""
        pictures, prompts, responses = self.draw(size)
        ids = padded([p + r for p, r in zip(prompts, responses, strict=True)], PAD)
        labels = padded(
            [[-100] * len(p) + r for p, r in zip(prompts, responses, strict=True)], -100
        )
        return {
            "input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels,
            "pixel_values": pictures,
        }  # fmt: skip


def padded(rows: list[list[int]], filler: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows])


def train(
    loss_of: Callable[[Batch, float], Tensor], module: nn.Module, scenes: Scenes, *, steps: int,
    rate: float, size: int = 64,
) -> None:  # fmt: skip
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        loss_of(scenes.batch(size), step / steps).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def train_teacher(steps: int) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    teacher = llava(TEACHER)
    scenes = Scenes(TEST_SCANS, TEACHER_SCANS, seed=1)
    train(lambda batch, _: teacher(**batch).loss, teacher, scenes, steps=steps, rate=2e-3)
    return teacher


def train_student(
    teacher: nn.Module, recipe: str | None, *, steps: int, seed: int
) -> LlavaForConditionalGeneration:
    """One student; None is its cross-entropy alone. All start alike and see the same batches."""
    torch.manual_seed(seed)
    student, scenes = llava(STUDENT), Scenes(TEST_SCANS, STUDENT_SCANS, seed=100 + seed)
    if recipe is None:
        train(lambda batch, _: student(**batch).loss, student, scenes, steps=steps, rate=3e-3)
        return student
    distiller = dk.Distiller(student, teacher, recipe)
    train(
        lambda batch, progress: distiller(batch, progress=progress).loss, distiller, scenes,
        steps=steps, rate=3e-3,
    )  # fmt: skip
    distiller.close()
    return student


@torch.no_grad()
def accuracy(model: nn.Module, size: int = 1000) -> float:
    """The share of the response's tokens that are predicted, of pictures of test scans."""
    model.eval()
    batch = Scenes(0, TEST_SCANS, seed=2).batch(size)
    asked = batch["labels"][:, 1:]
    found = model(**batch).logits[:, :-1].argmax(-1)
    digits = (asked != -100) & (asked != END)
    return (found == asked)[digits].float().mean().item()


class Row(NamedTuple):
    name: str
    accuracies: list[float]


def run(*, teacher_steps: int = 300, steps: int = 400, seeds: int = 2) -> list[Row]:
    """The teacher's accuracy and that of each way to train the student, for each seed."""
    teacher = train_teacher(teacher_steps)
    rows = [Row("teacher", [accuracy(teacher)])]
    for name, recipe in (("alone", None), ("vlm_response", "vlm_response"), ("vlm_kd", "vlm_kd")):
        trained = [train_student(teacher, recipe, steps=steps, seed=s) for s in range(seeds)]
        rows.append(Row(name, [accuracy(student) for student in trained]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=400, help="of each student")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    rows = run(teacher_steps=arguments.teacher_steps, steps=arguments.steps, seeds=arguments.seeds)
    print("digits right, pictures of scans that no training saw; mean (and each seed)")
    for name, found in rows:
        each = ", ".join(f"{100 * one:.1f}" for one in found)
        print(f"{name:<14}{100 * sum(found) / len(found):5.1f} %  ({each})")


if __name__ == "__main__":
    main()
