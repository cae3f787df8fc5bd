"""What a trainer does with the parameters that aligners learn, which are no part of the student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

import distillkit as dk


def learned_parameters(objective: dk.Objective) -> list[nn.Parameter]:
    """The parameters of aligners that learn."""
    return [p for p in objective.parameters() if p.requires_grad]


def start_alike(parameters: Sequence[nn.Parameter]) -> None:
    """Give every rank the first one's parameters."""
    if _several_ranks():
        for parameter in parameters:
            dist.broadcast(parameter.data, src=0)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average gradients over ranks, also where one rank has none; in the same order on all."""
    if _several_ranks():
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(dist.get_world_size())


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
