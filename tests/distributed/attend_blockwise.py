"""Run by torchrun: a blockwise attention loss on what a DDP model returned."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn

from distillkit import Attention, losses
from tests.distributed.leave import save_and_leave


class Projections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return [f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.query, self.key)]


def gradients(model: nn.Module, part: slice, method: str) -> list[torch.Tensor]:
    """The gradients of the mean over every example's mean."""
    generator = torch.Generator().manual_seed(1)
    x, query, key = (
        torch.randn(s, generator=generator) for s in [(4, 250, 8), *[(4, 2, 250, 3)] * 2]
    )
    rows = torch.arange(250) < torch.tensor([250, 100, 7, 200])[:, None]
    student = Attention(*model(x[part]), rows=rows[part])
    teacher = Attention(query[part], key[part])
    values = losses.attention_kl(student, teacher, method=method)
    (values.sum((1, 2)) / rows[part].sum(1)).mean().backward()
    return [p.grad.clone() for p in model.parameters()]


def projections() -> Projections:
    torch.manual_seed(0)
    return Projections()


def share_the_examples(method: str, folder: str) -> None:
    """This process's half of the examples, and the gradients of all."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = nn.parallel.DistributedDataParallel(projections())
    found = gradients(model, slice(2 * rank, 2 * rank + 2), method)
    save_and_leave(found, folder, rank)


if __name__ == "__main__":
    share_the_examples("auto", sys.argv[1])
