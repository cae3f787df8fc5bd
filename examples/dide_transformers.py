"""DiDE with models of transformers: a ViLT teaches two towers that never see each other.

    python examples/dide_transformers.py

Teacher and student are built from tiny configurations and trained on pictures that are drawn on the
spot: one coloured cell among grey ones, and a question about its colour, row or column. Needs
distillkit, distillkit-transformers and transformers; no download, no GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    ViltConfig,
    ViltForQuestionAnswering,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

import distillkit as dk

COLORS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
}
ASKED = ("color", "row", "column")
WORDS = ("[PAD]", "[CLS]", "[SEP]", "please", "which", "has", "the", "cell", *ASKED)
PATCH, GRID = 8, 3
ANSWERS = len(COLORS) + 2 * GRID
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,
}
TEXT = {"vocab_size": len(WORDS), "max_position_embeddings": 16}
IMAGE = {"image_size": PATCH * GRID, "patch_size": PATCH}


class DualEncoderForQuestionAnswering(VisionTextDualEncoderModel):
    """The student: two towers and a head that is all they share."""

    def __init__(self, config: VisionTextDualEncoderConfig, num_labels: int) -> None:
        super().__init__(config)
        width = config.text_config.hidden_size
        self.fusion = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU())
        self.classifier = nn.Linear(2 * width, num_labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
    ) -> dict[str, Tensor]:
        text = self.text_model(input_ids=input_ids, attention_mask=attention_mask)
        image = self.vision_model(pixel_values=pixel_values)
        both = torch.cat([text.last_hidden_state[:, 0], image.last_hidden_state[:, 0]], -1)
        return {"logits": self.classifier(self.fusion(both))}


class Results(NamedTuple):
    """What was measured, on pictures that no training saw."""

    teacher_accuracy: float
    student_accuracy: float
    before: dict[str, float]
    after: dict[str, float]
    losses: list[float]


def draw(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Pictures of nine cells, questions of unequal length, and their answers."""
    palette = torch.tensor([*COLORS.values()])
    color = torch.randint(len(COLORS), (count,), generator=generator)
    row, column = (torch.randint(GRID, (count,), generator=generator) for _ in range(2))
    pixels = torch.full((count, 3, GRID, GRID), 0.5)
    pixels[torch.arange(count), :, row, column] = palette[color]
    pixels = pixels.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    pixels = pixels + 0.1 * torch.randn(pixels.shape, generator=generator)
    asked = torch.randint(len(ASKED), (count,), generator=generator)
    polite = torch.rand(count, generator=generator) < 0.5
    questions = [
        [*(["please"] if p else []), "which", ASKED[a], "has", "the", "cell"]
        for p, a in zip(polite.tolist(), asked.tolist(), strict=True)
    ]
    ids = [[WORDS.index(word) for word in ("[CLS]", *words, "[SEP]")] for words in questions]
    length = max(map(len, ids))
    input_ids = torch.tensor([one + [0] * (length - len(one)) for one in ids])
    answers = torch.stack([color, len(COLORS) + row, len(COLORS) + GRID + column])
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
        "pixel_values": 2 * pixels - 1,
        "answer": answers[asked, torch.arange(count)],
    }


def batches(steps: int, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield draw(size, generator)


def make_teacher() -> ViltForQuestionAnswering:
    config = ViltConfig(**SIZES, **TEXT, **IMAGE, num_labels=ANSWERS, max_image_length=-1)
    teacher = ViltForQuestionAnswering(config)
    nn.init.normal_(teacher.vilt.embeddings.position_embeddings, std=0.5)  # they start at zero
    return teacher


def make_student() -> DualEncoderForQuestionAnswering:
    towers = ViTConfig(**SIZES, **IMAGE), BertConfig(**SIZES, **TEXT)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*towers, projection_dim=32)
    return DualEncoderForQuestionAnswering(config, num_labels=ANSWERS)


def answer(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits ``(b, answers)``."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    return model(**inputs)["logits"]


@torch.no_grad()
def accuracy(model: nn.Module, batch: dict[str, Tensor]) -> float:
    model.eval()
    return (answer(model, batch).argmax(-1) == batch["answer"]).float().mean().item()


def train_teacher(steps: int, size: int, seed: int) -> ViltForQuestionAnswering:
    torch.manual_seed(seed)
    teacher = make_teacher().train()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-3)
    for batch in batches(steps, size, seed):
        F.cross_entropy(answer(teacher, batch), batch["answer"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return teacher


def run(*, teacher_steps: int = 250, steps: int = 400, size: int = 64, seed: int = 0) -> Results:
    """Train the teacher, then the student from its answers and its attention."""
    teacher = train_teacher(teacher_steps, size, seed)
    test = draw(512, torch.Generator().manual_seed(seed + 2))
    student = make_student()

    distiller = dk.Distiller(student, teacher, dk.load_recipe("dide"), ignore=["answer"])
    print(distiller.check(draw(8, torch.Generator().manual_seed(seed))))

    before = parts_of(distiller, test)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for step, batch in enumerate(batches(steps, size, seed + 1)):
        result = distiller(batch, progress=step / steps)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result.loss.item())
    after = parts_of(distiller, test)
    distiller.close()
    return Results(accuracy(teacher, test), accuracy(student, test), before, after, losses)


@torch.no_grad()
def parts_of(distiller: dk.Distiller, batch: dict[str, Tensor]) -> dict[str, float]:
    """The recipe's parts on one batch, without training."""
    distiller.eval()
    parts = {name: part.item() for name, part in distiller(batch, progress=1.0).parts.items()}
    distiller.train()
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher-steps", type=int, default=250)
    parser.add_argument("--steps", type=int, default=400, help="of the student")
    arguments = parser.parse_args()
    results = run(teacher_steps=arguments.teacher_steps, steps=arguments.steps)
    print(
        f"\nteacher accuracy {results.teacher_accuracy:.3f}, student {results.student_accuracy:.3f}"
    )
    for name, value in results.before.items():
        print(f"{name:<40} before {value:.4f}  after {results.after[name]:.4f}")


if __name__ == "__main__":
    main()
