"""DiDE on real digits: a dual encoder learns a fusion encoder's answers and its attention.

    python examples/dide/train.py

trains a teacher that reads question and scene together, then three students that encode them
apart: alone, with soft labels, and with soft labels and cross-modal attention (DiDE). It prints a
table and writes results and pictures to examples/dide/out/.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import data
import figures
import models
import timing
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import distillkit as dk
from distillkit import losses

HERE = Path(__file__).parent
QUESTIONS_PER_SCENE = 8
COMPARED_PER_SCENE = 2  # questions of each scene whose attention is compared in a step
STUDENTS = {"alone": "alone.toml", "soft labels": "soft.toml", "DiDE": "dide.toml"}
ATTENTION = ("attention.text_to_image", "attention.image_to_text")


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    steps: int = 2000
    train_scenes: int = 5000
    test_scenes: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A model and how it came about."""

    model: nn.Module
    history: list[tuple[int, float]]  # (step, validation accuracy)
    seconds: float


# ------------------------------------------------------------------------------------- batches


def batches(pairs: data.Pairs, scenes: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Indices of pairs, ``scenes`` whole scenes at a time, reshuffled every epoch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    offsets = torch.arange(QUESTIONS_PER_SCENE)
    for _ in range(steps):
        if len(order) < scenes:
            order = torch.randperm(len(pairs.scenes), generator=generator)
        chosen, order = order[:scenes], order[scenes:]
        yield (chosen[:, None] * QUESTIONS_PER_SCENE + offsets).flatten()


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


def compare_some(
    batch: Mapping[str, Tensor], generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """The batch with attention compared on a few random questions of each scene, and which."""
    scenes = len(batch["question"]) // QUESTIONS_PER_SCENE
    drawn = torch.randint(QUESTIONS_PER_SCENE, (scenes, COMPARED_PER_SCENE), generator=generator)
    compared = (torch.arange(scenes)[:, None] * QUESTIONS_PER_SCENE + drawn).flatten()
    some = {
        "compared_question": batch["question"][compared],
        "compared_scene": batch["scene"][compared],
    }
    return {**batch, **some}, compared


# ------------------------------------------------------------------------------------ training


def optimizer_for(
    model: nn.Module, learning_rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, warmed up over a tenth of the steps and decayed to zero."""
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or "position" in n]
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "position" not in n]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
    warm = max(1, steps // 10)

    def factor(step: int) -> float:
        return min((step + 1) / warm, (steps - step) / max(1, steps - warm))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train(
    model: nn.Module,
    loss_of: Callable[[Tensor, float], Tensor],
    indices: Iterator[Tensor],
    learning_rate: float,
    plan: Plan,
    validation: data.Pairs,
    on_step: Callable[[], None],
) -> Trained:
    """The loop of every model here: ``loss_of(pairs, progress)`` for each batch."""
    optimizer, schedule = optimizer_for(model, learning_rate, plan.steps)
    every = max(1, plan.steps // 10)
    history, start = [], time.perf_counter()
    for step, index in enumerate(indices):
        loss = loss_of(index, step / plan.steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step()
        if (step + 1) % every == 0:
            history.append((step + 1, accuracy(model, validation).mean().item()))
    return Trained(model, history, time.perf_counter() - start)


def train_teacher(
    plan: Plan,
    stem: Mapping[str, Tensor],
    pairs: data.Pairs,
    validation: data.Pairs,
    on_step: Callable[[], None],
) -> Trained:
    """The fusion encoder on the noisy labels."""
    torch.manual_seed(plan.seed)
    teacher = models.FusionEncoder()
    models.load_stem(teacher, stem)

    def loss_of(index: Tensor, _: float) -> Tensor:
        batch = batch_of(pairs, index)
        return F.cross_entropy(answer(teacher, batch), batch["answer"])

    indices = batches(pairs, 16, plan.steps, plan.seed)  # 8 scenes can stay on a plateau
    return train(teacher, loss_of, indices, 2e-3, plan, validation, on_step)


def teacher_signals(distiller: dk.Distiller, pairs: data.Pairs) -> dk.Signals:
    """The teacher's answers and attention on every training pair, computed once."""
    parts = [
        distiller.run_teacher(batch_of(pairs, index)).only("logits", *ATTENTION)
        for index in torch.arange(len(pairs.answer)).split(400)
    ]
    return dk.Signals.concatenate(parts)


def train_student(
    recipe: str,
    plan: Plan,
    stem: Mapping[str, Tensor],
    teacher: nn.Module,
    known: dk.Signals,
    pairs: data.Pairs,
    validation: data.Pairs,
    on_step: Callable[[], None],
) -> Trained:
    """A dual encoder by one recipe."""
    torch.manual_seed(plan.seed)
    student = models.DualEncoder()
    models.load_stem(student, stem)
    distiller = distiller_of(student, teacher, recipe)
    generator = torch.Generator().manual_seed(plan.seed)

    def loss_of(index: Tensor, progress: float) -> Tensor:
        batch, compared = compare_some(batch_of(pairs, index), generator)
        signals = dk.Signals(
            {**known.only("logits").take(index), **known.only(*ATTENTION).take(index[compared])}
        )
        return distiller(batch, progress=progress, teacher_signals=signals).loss

    indices = batches(pairs, 64, plan.steps, plan.seed)
    trained = train(student, loss_of, indices, 1e-3, plan, validation, on_step)
    distiller.close()
    return trained


def distiller_of(student: nn.Module, teacher: nn.Module, recipe: str) -> dk.Distiller:
    """Both models, read through their adapter files."""
    return dk.Distiller(
        student,
        teacher,
        HERE / recipe,
        student_adapter=HERE / "student.toml",
        teacher_adapter=HERE / "teacher.toml",
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


def attention_examples(
    students: Mapping[str, nn.Module], teacher: nn.Module, pairs: data.Pairs
) -> list[figures.Example]:
    """The first test question of each kind, about different scenes: who looks where."""
    index = first_of_each_kind(pairs)
    batch = batch_of(pairs, index)
    panels: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    for name, student in students.items():
        distiller = distiller_of(student, teacher, STUDENTS["DiDE"]).eval()
        with torch.no_grad():
            result = distiller(batch)
        distiller.close()
        theirs, its_own = (side[ATTENTION[0]][-1] for side in (result.teacher, result.student))
        panels.setdefault("teacher", (theirs.probabilities(), result.teacher["logits"], None))
        kl = losses.attention_kl(its_own, theirs)
        panels[name] = (its_own.probabilities(), result.student["logits"], kl)
    return [_example(pairs, int(one), row, panels) for row, one in enumerate(index)]


def first_of_each_kind(pairs: data.Pairs) -> Tensor:
    """One pair of each kind, no two about one scene."""
    chosen: list[int] = []
    for kind in range(len(data.KINDS)):
        free = ~torch.isin(pairs.scene, pairs.scene[chosen]) & (pairs.kind == kind)
        chosen.append(int(free.nonzero()[0]))
    return torch.tensor(chosen)


def _example(
    pairs: data.Pairs,
    one: int,
    row: int,
    panels: Mapping[str, tuple[Tensor, Tensor, Tensor | None]],
) -> figures.Example:
    question = data.QUESTIONS[pairs.question[one]]
    word = question.split()[-1]
    token = 1 + question.split().index(word)  # after [CLS]
    return figures.Example(
        image=data.image_of(pairs.scenes[pairs.scene[one]]),
        question=question,
        word=word,
        answer=data.ANSWERS[pairs.answer[one]],
        panels=[
            figures.Panel(
                model=name,
                attention=probabilities[row, :, token, 1:].mean(0).numpy(),  # without the summary
                answer=data.ANSWERS[int(logits[row].argmax())],
                kl=None if kl is None else kl[row, :, token].mean().item(),
            )
            for name, (probabilities, logits, kl) in panels.items()
        ],
    )


# ------------------------------------------------------------------------------------ the demo


def main() -> None:
    arguments = parse_arguments()
    plan = Plan(arguments.steps, arguments.train_scenes, arguments.test_scenes, arguments.seed)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(mode=True)  # a machine prints the same table every time
    training, validation, test = (
        data.load("train", plan.train_scenes),
        data.load("val", max(1, plan.test_scenes // 2)),
        data.load("test", plan.test_scenes),
    )
    stem = models.pretrain_stem(plan.seed)
    with Progress(*Progress.get_default_columns(), console=console) as progress:

        def bar(name: str) -> Callable[[], None]:
            task = progress.add_task(name, total=plan.steps)
            return lambda: progress.advance(task)

        trained = {"teacher": train_teacher(plan, stem, training, validation, bar("teacher"))}
        teacher = trained["teacher"].model
        known = teacher_signals(
            distiller_of(models.DualEncoder(), teacher, STUDENTS["DiDE"]), training
        )
        for name, recipe in STUDENTS.items():
            on_step = bar(f"student: {name}")
            trained[name] = train_student(
                recipe, plan, stem, teacher, known, training, validation, on_step
            )
    scores = {name: by_kind(accuracy(one.model, test), test) for name, one in trained.items()}
    seconds = timing.inference_seconds(teacher, trained["DiDE"].model, test, arguments.timed_scenes)
    report(console, trained, scores, seconds, arguments.timed_scenes)
    write_results(out, plan, trained, scores, seconds, arguments.timed_scenes)
    students = {name: trained[name].model for name in STUDENTS}
    figures.draw_learning_curves(
        out / "learning_curves.png",
        {name: trained[name].history for name in STUDENTS},
        trained["teacher"].history[-1][1],
    )
    figures.draw_attention(out / "attention.png", attention_examples(students, teacher, test))
    where = os.path.relpath(out)
    console.print(f"results.json, learning_curves.png and attention.png are in {where}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each model")
    parser.add_argument("--train-scenes", type=int, default=5000)
    parser.add_argument("--test-scenes", type=int, default=1000)
    parser.add_argument("--timed-scenes", type=int, default=128, help="N of the timing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "out")
    return parser.parse_args()


def report(
    console: Console,
    trained: Mapping[str, Trained],
    scores: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    scenes: int,
) -> None:
    """One table of accuracies, one of what answers cost."""
    table = Table(title="Test accuracy (%)", title_justify="left")
    for column in ("model", "all", *data.KINDS, "training (s)"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, score in scores.items():
        cells = [f"{100 * score[column]:.1f}" for column in ("all", *data.KINDS)]
        table.add_row(name, *cells, f"{trained[name].seconds:.0f}")
    console.print(table)
    questions = len(data.QUESTIONS)
    cost = Table(
        title=f"Answering {questions} questions about each of {scenes} scenes, one thread",
        title_justify="left",
    )
    cost.add_column("way")
    cost.add_column("ms", justify="right")
    cost.add_column("times faster than fusion", justify="right")
    fused = next(iter(seconds.values()))
    for way, spent in seconds.items():
        cost.add_row(way, f"{1000 * spent:.0f}", f"{fused / spent:.1f}")
    console.print(cost)


def write_results(
    out: Path,
    plan: Plan,
    trained: Mapping[str, Trained],
    scores: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    scenes: int,
) -> None:
    """Everything that was printed, and the curves, as JSON."""
    results = {
        "plan": vars(plan),
        "test_accuracy": scores,
        "training_seconds": {name: one.seconds for name, one in trained.items()},
        "validation_accuracy": {name: one.history for name, one in trained.items()},
        "inference": {"scenes": scenes, "questions": len(data.QUESTIONS), "seconds": seconds},
    }
    (out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
