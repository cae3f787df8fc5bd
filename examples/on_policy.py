"""On-policy distillation of a small LLaVA: the student writes, the teacher corrects every token.

    python examples/on_policy.py

Data and models are those of vlm_kd.py. The student first learns a little from labels; then it
learns from its own responses alone, and needs no label. Each round generates, makes a batch of what
was written, and takes one step with the recipe `on_policy`. No download, no GPU, about a minute.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
import vlm_kd
from torch import Tensor, nn

import distillkit as dk

LONGEST = 4  # three digits and an end


def moved_left(ids: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The same prompts ``(b, n)`` with all padding on the left: generation goes on at the right."""
    order = seen.argsort(dim=1, stable=True)
    return ids.gather(1, order), seen.gather(1, order)


def written_by(model: nn.Module, prompts: vlm_kd.Batch, *, end: int, longest: int) -> vlm_kd.Batch:
    """Prompts and what a model samples after them, as a batch to distil on.

    Args:
        model: a LLaVA; its mode is put back.
        prompts: ``input_ids`` and ``attention_mask`` ``(b, n)``, padded on either side, and
            ``pixel_values``.
        end: the token at which a response stops. It is found by its place: what follows it is
            padding, also where the padding token is the end token itself.
        longest: the most tokens of a response.

    Returns:
        Responses follow their prompts. ``labels`` are the tokens up to the end and the end itself,
        -100 at prompts and padding, which ``attention_mask`` leaves out.
    """
    ids, seen = moved_left(prompts["input_ids"], prompts["attention_mask"])
    training = model.training
    model.eval()
    whole = model.generate(
        input_ids=ids, attention_mask=seen, pixel_values=prompts["pixel_values"], do_sample=True,
        top_k=0, max_new_tokens=longest, eos_token_id=end, pad_token_id=vlm_kd.PAD,
        suppress_tokens=[vlm_kd.IMAGE],  # a written placeholder would ask for another image
    )  # fmt: skip
    model.train(training)
    written = whole[:, ids.shape[1] :]
    ended = (written == end).long()
    kept = ended.cumsum(1) - ended == 0  # no end before this token
    return {
        "input_ids": whole,
        "attention_mask": torch.cat([seen, kept.long()], 1),
        "labels": torch.cat([torch.full_like(ids, -100), written.where(kept, -100)], 1),
        "pixel_values": prompts["pixel_values"],
    }


def prompts_of(scenes: vlm_kd.Scenes, size: int) -> vlm_kd.Batch:
    """Pictures and prompts without responses."""
    pictures, prompts, _ = scenes.draw(size)
    ids = vlm_kd.padded(prompts, vlm_kd.PAD)
    seen = (ids != vlm_kd.PAD).long()
    return {"input_ids": ids, "attention_mask": seen, "pixel_values": pictures}


class Results(NamedTuple):
    """Accuracies on pictures of scans that no training saw, and the loss of each round."""

    teacher: float
    before: float
    after: float
    losses: list[float]


def run(*, teacher_steps: int = 300, steps: int = 300, rounds: int = 150) -> Results:
    """Teacher and student from labels, then rounds of on-policy distillation."""
    teacher = vlm_kd.train_teacher(teacher_steps)
    student = vlm_kd.train_student(teacher, None, steps=steps, seed=0)
    before = vlm_kd.accuracy(student)
    scenes = vlm_kd.Scenes(vlm_kd.TEST_SCANS, vlm_kd.STUDENT_SCANS, seed=3)
    distiller = dk.Distiller(student, teacher, "on_policy").train()
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)
    losses = []
    for step in range(rounds):
        batch = written_by(student, prompts_of(scenes, 64), end=vlm_kd.END, longest=LONGEST)
        result = distiller(batch, progress=step / rounds)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result.loss.item())
    distiller.close()
    return Results(vlm_kd.accuracy(teacher), before, vlm_kd.accuracy(student), losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=300, help="of the student, from labels")
    parser.add_argument("--rounds", type=int, default=150, help="of its own responses")
    arguments = parser.parse_args()
    found = run(
        teacher_steps=arguments.teacher_steps, steps=arguments.steps, rounds=arguments.rounds
    )
    print(f"teacher {found.teacher:.3f}, student {found.before:.3f} -> {found.after:.3f}")
    print(f"divergence {found.losses[0]:.4f} -> {found.losses[-1]:.4f}")


if __name__ == "__main__":
    main()
