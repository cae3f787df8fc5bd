"""Run by torchrun: a contrastive loss over the examples of both processes."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from distillkit import losses
from tests.distributed.leave import save_and_leave


def gradient(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of the whole batch, and its gradient to a shared weight from one part."""
    generator = torch.Generator().manual_seed(0)
    inputs, teacher = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    student, teacher = losses.gather(inputs[part] @ weight), losses.gather(teacher[part])
    loss = losses.info_nce(student, teacher).mean() + losses.rkd_distance(student, teacher).mean()
    loss.backward()
    return loss.detach(), weight.grad


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    loss, weight_gradient = gradient(slice(3 * rank, 3 * rank + 3))
    dist.all_reduce(weight_gradient)  # what DDP does: the mean over processes
    save_and_leave((loss, weight_gradient / 2), sys.argv[1], rank)
