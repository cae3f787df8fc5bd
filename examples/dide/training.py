"""How teacher and students are trained: one loop, and what each of them learns from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import data
import models
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import distillkit as dk

HERE = Path(__file__).parent
QUESTIONS_PER_SCENE = 8
TEACHER_RATE, STUDENT_RATE = 2e-3, 1e-3  # of the demo and the gallery
COMPARED_PER_SCENE = 2  # questions of each scene whose attention is compared in a step
TEACHER_SCENES, STUDENT_SCENES = 16, 64  # in a step; with 8, teachers can stay on a plateau

T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """How long a model trains, and how fast it learns at most."""

    steps: int
    learning_rate: float
    readings: int = 10  # taken in equal distances


class Reading(NamedTuple):
    """What was measured on the way."""

    step: int
    seconds: float  # of the processor, in training alone
    values: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """A model and how it came about."""

    model: nn.Module
    readings: list[Reading]
    seconds: float  # by the clock
    cpu_seconds: float
    measuring_seconds: float  # of the processor too, for the readings
    loop_seconds: float  # of this process, both together


# ------------------------------------------------------------------------------------- batches


def batches(among: range, scenes: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Indices of pairs, ``scenes`` whole scenes at a time, reshuffled every epoch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    offsets = torch.arange(QUESTIONS_PER_SCENE)
    for _ in range(steps):
        if len(order) < scenes:
            order = among.start + torch.randperm(len(among), generator=generator)
        chosen, order = order[:scenes], order[scenes:]
        yield (chosen[:, None] * QUESTIONS_PER_SCENE + offsets).flatten()


def compared_pairs(scenes: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Positions, in a batch of whole scenes, of a few random questions about each."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.arange(scenes)[:, None] * QUESTIONS_PER_SCENE
    for _ in range(steps):
        drawn = (scenes, COMPARED_PER_SCENE)
        yield (first + torch.randint(QUESTIONS_PER_SCENE, drawn, generator=generator)).flatten()


def batch_of(pairs: data.Pairs, index: Tensor) -> dict[str, Tensor]:
    """These pairs as a batch in which every distinct question and scene comes once."""
    questions, question = pairs.question[index].unique(return_inverse=True)
    scenes, scene = pairs.scene[index].unique(return_inverse=True)
    return {
        "questions": pairs.questions[questions],
        "question_mask": pairs.question_mask[questions],
        "scenes": pairs.scenes[scenes],
        "question": question,
        "scene": scene,
        "compared_question": question,
        "compared_scene": scene,
        "answer": pairs.answer[index],
    }


def comparing(batch: Mapping[str, Tensor], compared: Tensor) -> dict[str, Tensor]:
    """The batch with attention compared for these of its pairs only."""
    some = {
        "compared_question": batch["question"][compared],
        "compared_scene": batch["scene"][compared],
    }
    return {**batch, **some}


# ------------------------------------------------------------------------------------ training


def optimizer_for(
    model: nn.Module, budget: Budget
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, warmed up over a tenth of the steps and decayed to zero."""
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or "position" in n]
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "position" not in n]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=budget.learning_rate, betas=(0.9, 0.98), fused=True)
    steps, warm = budget.steps, max(1, budget.steps // 10)

    def factor(step: int) -> float:
        return min((step + 1) / warm, (steps - step) / max(1, steps - warm))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train(
    model: nn.Module,
    loss_of: Callable[[T, float], Tensor],
    work: Iterator[T],
    budget: Budget,
    measure: Callable[[nn.Module], dict[str, float]],
    on_step: Callable[[], None] = lambda: None,
    checkpoint: Path | None = None,
) -> Trained:
    """The loop of every model here.

    Args:
        model: what is trained.
        loss_of: the loss of one piece of work, at a progress in [0, 1).
        work: what each step works on; the same from the start whenever it is asked for.
        budget: steps and learning rate.
        measure: what a reading says of the model.
        on_step: called after every step.
        checkpoint: written at every reading; where it exists, training goes on from it and ends
            with the same weights as without the interruption. It is deleted at the end.
    """
    optimizer, schedule = optimizer_for(model, budget)
    began = time.process_time()
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    every = max(1, budget.steps // budget.readings)
    readings: list[Reading] = []
    done, seconds, cpu_seconds, measuring = 0, 0.0, 0.0, 0.0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        readings = [Reading(*one) for one in saved["readings"]]
        done, seconds, cpu_seconds, measuring = saved["done"]
        for _ in range(done):
            on_step()
    for step, item in islice(enumerate(work), done, None):
        clock, busy = time.perf_counter(), time.process_time()
        loss = loss_of(item, step / budget.steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - clock
        cpu_seconds += time.process_time() - busy
        on_step()
        if (step + 1) % every == 0:
            busy = time.process_time()
            readings.append(Reading(step + 1, round(cpu_seconds, 3), measure(model)))
            measuring += time.process_time() - busy
            if checkpoint is not None:
                whole: dict[str, object] = {n: part.state_dict() for n, part in parts.items()}
                whole["readings"] = [tuple(one) for one in readings]
                whole["done"] = step + 1, seconds, cpu_seconds, measuring
                write_whole(checkpoint, whole)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    here = time.process_time() - began
    return Trained(model, readings, seconds, cpu_seconds, measuring, here)


def write_whole(path: Path, value: object) -> None:
    """``torch.save`` that leaves the old file or the new one, and never half of one."""
    beside = path.with_suffix(f".{os.getpid()}.part")
    torch.save(value, beside)
    beside.replace(path)


def train_teacher(
    budget: Budget,
    seed: int,
    stem: Mapping[str, Tensor],
    pairs: data.Pairs,
    measure: Callable[[nn.Module], dict[str, float]],
    on_step: Callable[[], None] = lambda: None,
    checkpoint: Path | None = None,
) -> Trained:
    """The fusion encoder on the noisy labels."""
    torch.manual_seed(seed)
    teacher = models.FusionEncoder()
    models.load_stem(teacher, stem)

    def loss_of(index: Tensor, _: float) -> Tensor:
        batch = batch_of(pairs, index)
        return F.cross_entropy(answer(teacher, batch), batch["answer"])

    work = batches(range(len(pairs.scenes)), TEACHER_SCENES, budget.steps, seed)
    return train(teacher, loss_of, work, budget, measure, on_step, checkpoint)


def new_student(seed: int, stem: Mapping[str, Tensor]) -> models.DualEncoder:
    """A dual encoder from scratch, but for its stem."""
    torch.manual_seed(seed)
    student = models.DualEncoder()
    models.load_stem(student, stem)
    return student


def teacher_signals(
    teacher: dk.Backbone, recipe: str | Path, pairs: data.Pairs, folder: Path
) -> dk.Signals:
    """What a recipe compares of the teacher, on every pair: computed once, and kept in a folder."""
    terms = dk.load_recipe(HERE / recipe).build().each()
    exact = {pair.teacher: "exact" for term in terms for pair in term.on}
    if not exact:
        return dk.Signals({})
    # questions and scenes are numbered anew in each batch, so that their entries tell nothing
    cache = dk.SignalCache(folder, HERE / recipe, codings=exact, inputs=())
    every = torch.arange(len(pairs.answer))
    if cache.missing(every.tolist()):
        loader = ({**batch_of(pairs, index), "pair": index} for index in every.split(400))
        cache.fill(teacher, loader, key="pair", progress=False)
    return cache.signals(every)


def train_student(
    distiller: dk.Distiller,
    budget: Budget,
    seed: int,
    known: dk.Signals,
    pairs: data.Pairs,
    measure: Callable[[nn.Module], dict[str, float]],
    on_step: Callable[[], None] = lambda: None,
    checkpoint: Path | None = None,
    attention_from: Tensor | None = None,
    order: Iterator[Tensor] | None = None,
) -> Trained:
    """The distiller's student, by its recipe.

    Args:
        distiller: student, teacher and recipe.
        budget: steps and learning rate.
        seed: of the order of the pairs.
        known: the teacher's signals on all pairs.
        pairs: what it learns from.
        measure: what a reading says of the model.
        on_step: called after every step.
        checkpoint: as for :func:`train`.
        attention_from: for every pair, the pair whose attention the teacher shows; by default
            its own.
        order: the pairs of each step; by default whole scenes, reshuffled every epoch.
    """
    if order is None:
        order = batches(range(len(pairs.scenes)), STUDENT_SCENES, budget.steps, seed)
    maps = [name for name in known if name.startswith("attention.")]
    others = [name for name in known if name not in maps]

    def loss_of(drawn: tuple[Tensor, Tensor], progress: float) -> Tensor:
        index, compared = drawn
        batch = comparing(batch_of(pairs, index), compared)
        shown = index[compared] if attention_from is None else attention_from[index[compared]]
        signals = {**known.only(*others).take(index), **known.only(*maps).take(shown)}
        return distiller(batch, progress=progress, teacher_signals=dk.Signals(signals)).loss

    work = zip(order, compared_pairs(STUDENT_SCENES, budget.steps, seed), strict=True)
    trained = train(distiller.student, loss_of, work, budget, measure, on_step, checkpoint)
    distiller.close()
    return trained


def distiller_of(
    student: nn.Module,
    teacher: nn.Module,
    recipe: str | Path,
    student_adapter: dk.Adapter | str = "student.toml",
    teacher_adapter: str = "teacher.toml",
) -> dk.Distiller:
    """Both models, read through their adapters; files are those beside this one."""
    if isinstance(student_adapter, str):
        student_adapter = HERE / student_adapter
    return dk.Distiller(
        student,
        teacher,
        HERE / recipe,
        student_adapter=student_adapter,
        teacher_adapter=HERE / teacher_adapter,
        task_loss=lambda output, batch: F.cross_entropy(output.logits, batch["answer"]),
    )


# ---------------------------------------------------------------------------------- evaluation


def answer(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits ``(p, answers)`` of every pair of a batch."""
    arguments = ("questions", "question_mask", "scenes", "question", "scene")
    return model(*(batch[name] for name in arguments)).logits


@torch.no_grad()
def accuracy(model: nn.Module, pairs: data.Pairs) -> Tensor:
    """Whether each pair is answered rightly, ``(p,)``, 0 or 1."""
    model.eval()
    right = [
        (answer(model, batch_of(pairs, index)).argmax(-1) == pairs.answer[index]).float()
        for index in torch.arange(len(pairs.answer)).split(500)
    ]
    model.train()
    return torch.cat(right)


def by_kind(right: Tensor, pairs: data.Pairs) -> dict[str, float]:
    """Accuracy in all and for each kind of question."""
    kinds = {
        kind: right[pairs.kind == number].mean().item() for number, kind in enumerate(data.KINDS)
    }
    return {"all": right.mean().item(), **kinds}
