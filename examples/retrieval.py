"""DiDE for retrieval: a small ViLT that scores pairs teaches two towers, by `dide_retrieval`.

    python examples/retrieval.py

A picture is four handwritten digits (scans of scikit-learn), its caption names them in order. The
candidates for a picture are its own caption, captions with one other digit, and one with two digits
exchanged. The teacher reads picture and caption together, so that every pair costs a forward; the
student reads each once. Counted is how often the own caption comes first, and among the first five,
of those of 100 pictures of scans that no training saw. Seeds differ more than the two trainings do:
docs/how-to/distil-retrieval.md shows six. No download, no GPU, a minute and a half on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from distillkit_transformers import ViltDualEncoder
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltModel

import distillkit as dk

CELL, DIGITS = 8, 4
START, ZERO = 1, 2  # the digit d is the word ZERO + d
CANDIDATES, RANKS = 4, (1, 5)
TEST_SCANS, STUDENT_SCANS = 500, 300
SIZES = {
    "vocab_size": ZERO + 10, "max_position_embeddings": DIGITS + 1, "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "image_size": 2 * CELL, "patch_size": CELL, "max_image_length": -1, "initializer_range": 0.1,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
Batch = dict[str, Any]
Recalls = dict[int, float]


class Pictures:
    """Pictures and candidate captions, drawn from some scans."""

    def __init__(self, first: int, count: int | None, seed: int) -> None:
        pixels, digits = load_digits(return_X_y=True)
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
        chosen = order[first : None if count is None else first + count]
        self.pixels = torch.from_numpy(pixels).float()[chosen].view(-1, CELL, CELL) / 8 - 1
        self.digits = torch.from_numpy(digits)[chosen]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Pictures ``(size, 3, 16, 16)``, and the digits of each, ``(size, 4)``."""
        chosen = torch.randint(len(self.digits), (size, 2, 2), generator=self.generator)
        rows = self.pixels[chosen].permute(0, 1, 3, 2, 4).reshape(size, 1, 2 * CELL, 2 * CELL)
        return rows.expand(-1, 3, -1, -1), self.digits[chosen].flatten(1)

    def batch(self, size: int) -> Batch:
        """Every picture with its candidates, of which the first is its own."""
        pictures, own = self.draw(size)
        texts = torch.stack([own, *(self._false(own, i) for i in range(1, CANDIDATES))], 1)
        return batch_of(pictures, texts.flatten(0, 1), CANDIDATES)

    def _false(self, own: Tensor, number: int) -> Tensor:
        """Captions that are wrong in one digit; the last candidate in the order of two."""
        size = len(own)
        place = torch.randint(DIGITS, (size, 1), generator=self.generator)
        added = torch.randint(1, 10, (size, 1), generator=self.generator)
        changed = own.scatter(1, place, (own.gather(1, place) + added) % 10)
        if number < CANDIDATES - 1:
            return changed
        other = (place + torch.randint(1, DIGITS, (size, 1), generator=self.generator)) % DIGITS
        swapped = own.scatter(1, place, own.gather(1, other))
        swapped = swapped.scatter(1, other, own.gather(1, place))
        return torch.where((swapped == own).all(1, keepdim=True), changed, swapped)


def batch_of(pictures: Tensor, digits: Tensor, candidates: int) -> Batch:
    """What both read: the student every picture once, the teacher once for each candidate."""
    index = torch.arange(len(pictures)).repeat_interleave(candidates)
    words = torch.cat([torch.full((len(digits), 1), START), ZERO + digits], 1)
    mask = torch.ones(len(pictures), *pictures.shape[2:], dtype=torch.long)
    return {
        "input_ids": words, "attention_mask": torch.ones_like(words), "candidates": candidates,
        "pixel_values": pictures, "pixel_mask": mask, "student_image_index": index,
        "teacher_pixel_values": pictures[index], "teacher_pixel_mask": mask[index],
    }  # fmt: skip


def teacher_scores(model: nn.Module, batch: Batch) -> Tensor:
    """Scores ``(b, k)`` of a model that reads pairs."""
    shared = {name: batch[name] for name in ("input_ids", "attention_mask")}
    images = {name: batch[f"teacher_{name}"] for name in ("pixel_values", "pixel_mask")}
    return model(**shared, **images).logits.view(-1, batch["candidates"])


def student_scores(model: nn.Module, batch: Batch) -> Tensor:
    """Scores ``(b, k)`` of two towers."""
    names = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
    shared = {name: batch[name] for name in names}
    out = model(**shared, image_index=batch["student_image_index"])
    return out.logits.view(-1, batch["candidates"])


def own_first(scores: Tensor) -> Tensor:
    """The loss without a teacher: cross-entropy of the own caption among the candidates."""
    return cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))


def train(
    trained: nn.Module, loss: Callable[[Batch], Tensor], pictures: Pictures, steps: int
) -> None:
    trained.train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        loss(pictures.batch(32)).backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def make_teacher() -> ViltForImageAndTextRetrieval:
    teacher = ViltForImageAndTextRetrieval(ViltConfig(**SIZES))
    nn.init.normal_(teacher.vilt.embeddings.position_embeddings, std=0.5)  # they start at zero
    return teacher


def make_student() -> ViltDualEncoder:
    start = ViltModel(ViltConfig(**SIZES))
    nn.init.normal_(start.embeddings.position_embeddings, std=0.5)
    return ViltDualEncoder.from_vilt(start, task="retrieval", dropout=0.0)


@torch.no_grad()
def recall(
    score: Callable[[nn.Module, Batch], Tensor], model: nn.Module, size: int = 100
) -> Recalls:
    """Of how many test pictures the own caption is among the first of all captions, by rank."""
    model.eval()
    pictures, digits = Pictures(0, TEST_SCANS, seed=2).draw(size)
    rows = [score(model, batch_of(one[None], digits, size)) for one in pictures]
    scores = torch.cat(rows)
    return recalls(scores, (digits[:, None] == digits).all(-1))


def recalls(scores: Tensor, same: Tensor) -> Recalls:
    """Recall by rank, of scores ``(n, n)``; captions that are the ``same`` do not compete.

    A tie is lost: a model that scores all alike has found nothing.
    """
    own = scores.diagonal()[:, None]
    before = ((scores >= own) & ~same).sum(1)
    return {rank: (before < rank).float().mean().item() for rank in RANKS}


def run(*, teacher_steps: int, steps: int, seeds: int) -> dict[str, list[Recalls]]:
    """Recalls of the teacher, and for each seed of a student before and after either training."""
    torch.manual_seed(0)
    teacher = make_teacher()
    seen = Pictures(TEST_SCANS, None, seed=1)
    train(teacher, lambda batch: own_first(teacher_scores(teacher, batch)), seen, teacher_steps)
    rows: dict[str, list[Recalls]] = {"teacher": [recall(teacher_scores, teacher)]}
    for seed in range(seeds):
        for name in ("alone", "dide_retrieval"):
            torch.manual_seed(seed)  # both begin as the same student, and see the same pictures
            student = make_student()
            pictures = Pictures(TEST_SCANS, STUDENT_SCANS, seed=100 + seed)
            if name == "alone":
                rows.setdefault("untrained", []).append(recall(student_scores, student))
                train(
                    student, lambda b, s=student: own_first(student_scores(s, b)), pictures, steps
                )
            else:
                distiller = dk.Distiller(student, teacher, "dide_retrieval")
                train(distiller, lambda b, d=distiller: d(b).loss, pictures, steps)
                distiller.close()
            rows.setdefault(name, []).append(recall(student_scores, student))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=400, help="of each student")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    rows = run(teacher_steps=arguments.teacher_steps, steps=arguments.steps, seeds=arguments.seeds)
    print("own caption first of 100, and among the first five; mean of seeds (first, each seed)")
    for name, found in rows.items():
        means = (100 * sum(one[rank] for one in found) / len(found) for rank in RANKS)
        each = ", ".join(f"{100 * one[RANKS[0]]:.0f}" for one in found)
        print(f"{name:<16}" + "".join(f"{mean:6.1f} %" for mean in means) + f"  ({each})")


if __name__ == "__main__":
    main()
