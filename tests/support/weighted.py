"""A small distiller with three terms and a weighting, and training steps of its parts."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import distillkit as dk
from tests.support import tiny

ATTENTION, LOGITS = "attention_kl/attention.text_to_image", "kl_divergence/logits"
TERMS = [
    {"loss": "attention_kl", "on": "attention.text_to_image", "per": "row", "weight": 2.0},
    {"loss": "kl_divergence", "on": "logits"},
    {"loss": "task", "weight": 0.5},
]
NAMES = [ATTENTION, LOGITS, "task"]
WEIGHTINGS = {
    "uncertainty": "uncertainty",
    "dynamic_average": {"name": "dynamic_average", "steps": 1},
    "dynamic_average over two steps": {"name": "dynamic_average", "steps": 2},
    "gradnorm": {"name": "gradnorm", "lr": 0.1},
    "gradnorm now": {"name": "gradnorm", "lr": 0.1, "now": True},
    "gradient_ratio": {"name": "gradient_ratio", "ratios": {ATTENTION: 0.5}},
    "gradient_ratio at": {
        "name": "gradient_ratio",
        "ratios": {ATTENTION: 0.5, LOGITS: 2.0},
        "smoothing": 0.0,
        "at": "*.blocks.0.**",
    },
}
TORCHJD = {"torchjd": "torchjd", "torchjd MGDA": {"name": "torchjd", "aggregator": "MGDA"}}


def task_loss(output, batch):
    return F.cross_entropy(output.logits, batch["labels"])


def distiller_of(weighting="static", terms=TERMS, **given):
    torch.manual_seed(0)
    given = {"task_loss": task_loss, **given}
    return dk.Distiller(
        tiny.Dual().double(),
        tiny.Fusion().double(),
        dk.Recipe(name="weighted", terms=terms, weighting=weighting),
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES),
        ignore=["labels"],
        **given,
    )


def batch_of(step, examples=6):
    return {
        n: x.double() if n == "pixels" else x for n, x in tiny.batch(examples, seed=step).items()
    }


def part_of(step, part, examples=6):
    return {name: value[part] for name, value in batch_of(step, examples).items()}


def optimizer_of(distiller):
    return torch.optim.SGD(distiller.parameters(), lr=0.2, momentum=0.9)


def train(distiller, steps, cuts=((0, 6),), *, model=None, optimizer=None, normalized=True):
    """The weights of each step, which are those of each of its calls, and its loss.

    ``cuts`` are where the batch is cut, or a function of the step that says so.
    """
    model = model or distiller
    optimizer = optimizer or optimizer_of(distiller)
    found = []
    for step in steps:
        chosen = cuts(step) if callable(cuts) else cuts
        parts = [part_of(step, slice(*cut)) for cut in chosen]
        normalizer = distiller.normalizer(parts, progress=step / 8) if normalized else None
        losses, weights = [], []
        for part in parts:
            result = model(part, progress=step / 8, normalizer=normalizer)
            loss = result.loss if normalized else result.loss / len(parts)
            loss.backward()
            losses.append(loss.item())
            weights.append(result.weights)
        assert all(one == weights[0] for one in weights)  # once a step, not for each part
        optimizer.step()
        optimizer.zero_grad()
        found.append((weights[0], sum(losses)))
    return found


def close(one, other, tolerance=1e-6):
    """Whether two trainings had the same weights and losses."""
    for (weights, loss), (others, other_loss) in zip(one, other, strict=True):
        assert weights.keys() == others.keys()
        for name, weight in weights.items():
            assert abs(weight - others[name]) <= tolerance * max(1, abs(weight)), (name, one, other)
        assert abs(loss - other_loss) <= tolerance * max(1, abs(loss)), (one, other)
