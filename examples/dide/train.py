"""DiDE on real digits: a dual encoder learns a fusion encoder's answers and its attention.

    python examples/dide/train.py

trains a teacher that reads question and scene together, then three students that encode them
apart: alone, with soft labels, and with soft labels and cross-modal attention (DiDE). It prints a
table and writes results, pictures and a page of attention to examples/dide/out/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import data
import figures
import models
import timing
import torch
from attention_examples import attention_examples, attention_page, first_of_each_kind
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn
from training import (
    STUDENT_RATE,
    TEACHER_RATE,
    Budget,
    Trained,
    accuracy,
    by_kind,
    distiller_of,
    new_student,
    teacher_signals,
    train_student,
    train_teacher,
)

import distillkit as dk

HERE = Path(__file__).parent
STUDENTS = {"alone": "alone.toml", "soft labels": "soft.toml", "DiDE": "dide.toml"}


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    steps: int = 2000
    train_scenes: int = 5000
    test_scenes: int = 1000
    seed: int = 0


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

        def measure(model: nn.Module) -> dict[str, float]:
            return {"accuracy": accuracy(model, validation).mean().item()}

        trained = {
            "teacher": train_teacher(
                Budget(plan.steps, TEACHER_RATE), plan.seed, stem, training, measure, bar("teacher")
            )
        }
        teacher = trained["teacher"].model
        signals = out / "signals"  # of the last teacher; this is another one
        shutil.rmtree(signals, ignore_errors=True)
        backbone = dk.Backbone(teacher, HERE / "teacher.toml")
        known = teacher_signals(backbone, STUDENTS["DiDE"], training, signals)
        for name, recipe in STUDENTS.items():
            distiller = distiller_of(new_student(plan.seed, stem), teacher, recipe)
            trained[name] = train_student(
                distiller, Budget(plan.steps, STUDENT_RATE), plan.seed, known, training, measure,
                bar(f"student: {name}"),
            )  # fmt: skip
    scores = {name: by_kind(accuracy(one.model, test), test) for name, one in trained.items()}
    seconds = timing.inference_seconds(teacher, trained["DiDE"].model, test, arguments.timed_scenes)
    report(console, trained, scores, seconds, arguments.timed_scenes)
    write_results(out, plan, trained, scores, seconds, arguments.timed_scenes)
    students = {name: trained[name].model for name in STUDENTS}
    figures.draw_learning_curves(
        out / "learning_curves.png",
        {name: curve_of(trained[name]) for name in STUDENTS},
        curve_of(trained["teacher"])[-1][1],
    )
    shown = attention_examples(students, teacher, test, first_of_each_kind(test))
    figures.draw_attention(out / "attention.png", shown)
    attention_page(students, teacher, test, torch.arange(12)).save(out / "attention.html")
    written = "results.json, learning_curves.png, attention.png and attention.html"
    console.print(f"{written} are in {os.path.relpath(out)}")


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


def curve_of(trained: Trained) -> list[tuple[int, float]]:
    """(step, validation accuracy)."""
    return [(one.step, one.values["accuracy"]) for one in trained.readings]


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
        "validation_accuracy": {name: curve_of(one) for name, one in trained.items()},
        "inference": {"scenes": scenes, "questions": len(data.QUESTIONS), "seconds": seconds},
    }
    (out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
