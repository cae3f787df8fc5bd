"""How teacher and students are trained: one loop, and what each of them learns from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import distillkit as dk

from .adapters import student_adapter, teacher_adapter
from .batches import Examples, batch_of
from .models import Shape

AT_ONCE = 500  # examples in a forward without gradient
MAPS = ("attention.text_to_image", "attention.image_to_text")
ARGUMENTS = ("words", "word_mask", "cells", "place", "text", "image")


@dataclass(frozen=True)
class Budget:
    """How long a model trains, on how many examples in a step, and how fast it learns at most."""

    steps: int
    examples: int
    learning_rate: float


@dataclass(frozen=True)
class Spent:
    """What a training took, in seconds of the processor and by the clock."""

    cpu_seconds: float
    seconds: float


def order_of(examples: int, budget: Budget, seed: int) -> Iterator[Tensor]:
    """The examples of each step, reshuffled every epoch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(budget.steps):
        while len(order) < budget.examples:
            order = torch.cat([order, torch.randperm(examples, generator=generator)])
        chosen, order = order[: budget.examples], order[budget.examples :]
        yield chosen


def optimizer_for(
    model: nn.Module, budget: Budget
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, warmed up over a tenth of the steps and decayed to zero."""
    named = list(model.named_parameters())
    plain = [p for n, p in named if p.ndim < 2 or "position" in n or "vectors" in n]
    others = {id(p) for p in plain}
    groups = [
        {"params": [p for _, p in named if id(p) not in others], "weight_decay": 0.01},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=budget.learning_rate, betas=(0.9, 0.98), fused=True)
    steps, warm = budget.steps, max(1, budget.steps // 10)

    def factor(step: int) -> float:
        return min((step + 1) / warm, (steps - step) / max(1, steps - warm))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train(
    model: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    examples: int,
    budget: Budget,
    seed: int,
    checkpoint: Path | None = None,
) -> Spent:
    """The loop of every model here.

    Args:
        model: what is trained.
        loss_of: the loss of some examples, by their numbers.
        examples: how many there are.
        budget: steps, batch, learning rate.
        seed: of their order.
        checkpoint: written ten times on the way; where it exists, training goes on from it and
            ends with the same weights as without the interruption. It is deleted at the end.
    """
    optimizer, schedule = optimizer_for(model, budget)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done, seconds, cpu_seconds = 0, 0.0, 0.0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        done, seconds, cpu_seconds = saved["done"]
    every = max(1, budget.steps // 10)
    for step, index in islice(enumerate(order_of(examples, budget, seed)), done, None):
        clock, busy = time.perf_counter(), time.process_time()
        loss = loss_of(index)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - clock
        cpu_seconds += time.process_time() - busy
        if checkpoint is not None and (step + 1) % every == 0 and step + 1 < budget.steps:
            whole = {name: part.state_dict() for name, part in parts.items()}
            write_whole(checkpoint, {**whole, "done": (step + 1, seconds, cpu_seconds)})
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Spent(cpu_seconds, seconds)


def write_whole(path: Path, value: object) -> None:
    """``torch.save`` that leaves the old file or the new one, and never half of one."""
    beside = path.with_suffix(f".{os.getpid()}.part")
    torch.save(value, beside)
    beside.replace(path)


def begin_from(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take all weights but the classifier's; a second scene begins as the first."""
    own = model.state_dict()
    taken = {
        name: value.expand_as(own[name]) if name.endswith("modality") else value
        for name, value in state.items()
        if not name.startswith("classifier.")
    }
    model.load_state_dict({**own, **taken})


# -------------------------------------------------------------------------- what they learn from


def train_teacher(
    teacher: nn.Module, examples: Examples, budget: Budget, seed: int, checkpoint: Path | None
) -> Spent:
    """A fusion encoder on the labels."""

    def loss_of(index: Tensor) -> Tensor:
        batch = batch_of(examples, index)
        return task_loss(teacher(*(batch[name] for name in ARGUMENTS)), batch)

    return train(teacher, loss_of, len(examples), budget, seed, checkpoint)


def task_loss(output: Any, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy of the label among answers, or of the own text among the candidates."""
    logits = output.logits
    if "candidates" in batch:
        logits = logits.view(-1, batch["candidates"])
    return F.cross_entropy(logits, batch["label"])


@dataclass(frozen=True)
class Known:
    """The teacher's signals on all examples, computed once.

    Attributes:
        answers: logits or scores, a row for each example.
        maps: attention, a row for each pair.
    """

    answers: dk.Signals
    maps: dk.Signals


@torch.no_grad()
def teacher_signals(teacher: nn.Module, shape: Shape, examples: Examples) -> Known:
    """Answers and cross-modal attention of the teacher, on every example."""
    backbone = dk.Backbone(teacher.eval(), teacher_adapter(shape))
    answer = "logits" if examples.text.shape[1] == 1 else "scores"
    answers, maps = [], []
    for index in torch.arange(len(examples)).split(AT_ONCE):
        found = backbone.signals(batch_of(examples, index)).detach()
        answers.append(found.only(answer))
        maps.append(found.only(*MAPS))
    backbone.close()
    return Known(dk.Signals.concatenate(answers), dk.Signals.concatenate(maps))


def train_student(
    student: nn.Module,
    teacher: nn.Module,
    recipe: dk.Recipe,
    shape: Shape,
    known: Known,
    examples: Examples,
    budget: Budget,
    seed: int,
    checkpoint: Path | None,
) -> Spent:
    """A dual encoder by a recipe."""
    distiller = dk.Distiller(
        student, teacher, recipe, student_adapter=student_adapter(shape),
        teacher_adapter=teacher_adapter(shape), task_loss=task_loss,
    )  # fmt: skip

    def loss_of(index: Tensor) -> Tensor:
        pairs = examples.pairs_of(index)
        signals = {**known.answers.take(index), **known.maps.take(pairs)}
        batch = batch_of(examples, index)
        return distiller(batch, teacher_signals=dk.Signals(signals)).loss

    spent = train(student, loss_of, len(examples), budget, seed, checkpoint)
    distiller.close()
    return spent


# ------------------------------------------------------------------------------------ evaluation


@torch.no_grad()
def accuracy(model: nn.Module, examples: Examples) -> float:
    """The share of examples whose best answer, or best candidate, is the right one."""
    model.eval()
    right = 0.0
    for index in torch.arange(len(examples)).split(AT_ONCE):
        batch = batch_of(examples, index)
        logits = model(*(batch[name] for name in ARGUMENTS)).logits
        if "candidates" in batch:
            logits = logits.view(-1, batch["candidates"])
        right += float((logits.argmax(1) == batch["label"]).sum())
    model.train()
    return right / len(examples)
