"""Run by torchrun: train a student by its captured attention alone, each rank on its part."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import distillkit as dk
from tests.distributed.leave import save_and_leave
from tests.support import tiny

TERMS = [
    {"loss": "attention_kl", "on": f"attention.{direction}"}
    for direction in ("text_to_image", "image_to_text")
]


def distiller_of() -> dk.Distiller:
    torch.manual_seed(0)
    return dk.Distiller(
        tiny.Dual(),
        tiny.Fusion(),
        dk.Recipe(name="attention", terms=TERMS),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES),
        ignore=["labels"],
    )


def train(model: torch.nn.Module, student: torch.nn.Module, part: slice) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    for step in range(4):
        batch = {name: value[part] for name, value in tiny.batch(4, seed=step).items()}
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()
    return student.state_dict()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    distiller = distiller_of()
    wrapped = DistributedDataParallel(distiller, find_unused_parameters=True)
    state = train(wrapped, distiller.student, slice(2 * rank, 2 * rank + 2))
    save_and_leave(state, sys.argv[1], rank)
