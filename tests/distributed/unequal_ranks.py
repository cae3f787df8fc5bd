"""Run by torchrun: one backward of unequal parts on two ranks, normalised by what counts in both."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import distillkit as dk
from tests.distributed.leave import save_and_leave
from tests.support import tiny

TERMS = [
    {"loss": "attention_kl", "on": "attention.text_to_image", "per": "row"},
    {"loss": "kl_divergence", "on": "logits"},
    {"loss": "task"},
]


def task_loss(output, batch):
    return F.cross_entropy(output.logits, batch["labels"])


def distiller_of() -> dk.Distiller:
    torch.manual_seed(0)
    return dk.Distiller(
        tiny.Dual(),
        tiny.Fusion(),
        dk.Recipe(name="three terms", terms=TERMS),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES),
        task_loss=task_loss,
        ignore=["labels"],
    )


def gradients(distiller: dk.Distiller) -> dict[str, torch.Tensor]:
    named = distiller.student.named_parameters()
    return {n.removeprefix("module."): p.grad for n, p in named if p.grad is not None}


def part_of(rank: int) -> dict[str, torch.Tensor]:
    part = slice(0, 1) if rank == 0 else slice(1, 5)
    return {name: value[part] for name, value in tiny.batch(5).items()}


def around_the_distiller(rank: int) -> dict[str, torch.Tensor]:
    distiller = distiller_of()
    wrapped = DistributedDataParallel(distiller, find_unused_parameters=True)
    normalizer = wrapped.module.normalizer([part_of(rank)])
    wrapped(part_of(rank), normalizer=normalizer).loss.backward()
    return gradients(distiller)


def around_the_student(rank: int) -> dict[str, torch.Tensor]:
    distiller = distiller_of()
    distiller.student = DistributedDataParallel(distiller.student, find_unused_parameters=True)
    normalizer = distiller.normalizer([part_of(rank)])
    distiller(part_of(rank), normalizer=normalizer).loss.backward()
    return gradients(distiller)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {"distiller": around_the_distiller(rank), "student": around_the_student(rank)}
    save_and_leave(found, sys.argv[1], rank)
