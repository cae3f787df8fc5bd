"""The official optimizer: AdamW in groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .tasks import BETAS, EPSILON, LEARNING_RATE, WEIGHT_DECAY


def parameter_groups(
    student: nn.Module, *, rate: float = LEARNING_RATE, head_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Four groups: with weight decay or without, of the classifier or of the rest.

    Biases and norms do not decay. The official code goes by names, and does not know the two norms
    inside fusion and classifier, which decay there; here none does.

    Args:
        student: a ``ViltDualEncoder``.
        rate: the learning rate.
        head_rate: how many times as fast the classifier learns; the fusion is no part of it.
    """
    norms = {
        f"{name}.{one}"
        for name, module in student.named_modules()
        if isinstance(module, nn.LayerNorm)
        for one, _ in module.named_parameters(recurse=False)
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            decays = name not in norms and not name.endswith(".bias")
            groups.setdefault((decays, name.startswith("classifier.")), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": WEIGHT_DECAY if decays else 0.0,
            "lr": rate * (head_rate if is_head else 1.0),
        }
        for (decays, is_head), parameters in groups.items()
    ]


def make_optimizer(
    student: nn.Module, *, rate: float = LEARNING_RATE, head_rate: float = 1.0
) -> torch.optim.AdamW:
    """AdamW over :func:`parameter_groups`."""
    groups = parameter_groups(student, rate=rate, head_rate=head_rate)
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, eps=EPSILON)
