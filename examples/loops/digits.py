"""The demo's students in four loops: the recipe, the data and the steps are the same in each.

    python examples/loops/digits.py

trains the fusion teacher of examples/dide once and keeps it in a folder. Then every installed loop
trains the dual encoder with the recipe dide.toml for a few seeds, and a table shows the accuracies.
``--loop trainer --seed 0`` runs one of them and shows that loop's own console.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

import distillkit as dk

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "dide"))
import data  # noqa: E402 (the modules of the demo, found by the line above)
import models  # noqa: E402
import training  # noqa: E402

RECIPE = "dide.toml"
TEACHER_RATE, STUDENT_RATE = 2e-3, 2e-3
SCENES = 16  # in a step, each with its eight questions
LOG_EVERY = 10


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    steps: int
    teacher_steps: int
    train_scenes: int
    test_scenes: int


@dataclass(frozen=True)
class Work:
    """What each loop is given beside a distiller.

    Attributes:
        examples: the pairs ``(8,)`` of one scene each, in the order in which they are learned.
        collate: from examples to a batch.
        budget: steps and learning rate.
        shuffle: the loop draws an order of its own.
        show: let the loop print what it logs.
    """

    examples: list[Tensor]
    collate: Callable[[list[Tensor]], dict[str, Tensor]]
    budget: training.Budget
    shuffle: bool
    show: bool


# ----------------------------------------------------------------------------------- the loops
# Each returns what it logged last: means over the last LOG_EVERY steps.


def train_raw(distiller: dk.Distiller, work: Work) -> dict[str, float]:
    optimizer, schedule = training.optimizer_for(distiller.student, work.budget)
    loader = DataLoader(work.examples, SCENES, shuffle=work.shuffle, collate_fn=work.collate)
    meter, means = dk.Meter(), {}
    for step, batch in enumerate(loader):
        result = distiller(batch, progress=step / work.budget.steps)
        optimizer.zero_grad()
        result.loss.backward()
        nn.utils.clip_grad_norm_(distiller.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        meter.add(result)
        if (step + 1) % LOG_EVERY == 0:
            means = meter.means()
            if work.show:
                print(step + 1, means)
    return means


def train_accelerate(distiller: dk.Distiller, work: Work) -> dict[str, float]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer, schedule = training.optimizer_for(distiller.student, work.budget)
    loader = DataLoader(work.examples, SCENES, shuffle=work.shuffle, collate_fn=work.collate)
    distiller, optimizer, loader, schedule = accelerator.prepare(
        distiller, optimizer, loader, schedule
    )
    meter, means = dk.Meter(), {}
    for step, batch in enumerate(loader):
        result = distiller(batch, progress=step / work.budget.steps)
        optimizer.zero_grad()
        accelerator.backward(result.loss)
        accelerator.clip_grad_norm_(distiller.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        meter.add(result)
        if (step + 1) % LOG_EVERY == 0:
            means = meter.means()
            if work.show:
                accelerator.print(step + 1, means)
    return means


def train_trainer(distiller: dk.Distiller, work: Work) -> dict[str, float]:
    import transformers as hf
    from distillkit_transformers import DistillationTrainer

    with tempfile.TemporaryDirectory() as folder:
        args = hf.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=SCENES, num_train_epochs=1,
            max_grad_norm=1.0, logging_steps=LOG_EVERY, save_strategy="no", report_to=[],
            use_cpu=True, remove_unused_columns=False, disable_tqdm=not work.show,
            train_sampling_strategy="random" if work.shuffle else "sequential",
        )  # fmt: skip
        trainer = DistillationTrainer(
            distiller=distiller, args=args, train_dataset=work.examples, data_collator=work.collate,
            optimizers=training.optimizer_for(distiller.student, work.budget),
        )  # fmt: skip
        if not work.show:
            trainer.remove_callback(hf.PrinterCallback)
        trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row][-1]


def train_lightning(distiller: dk.Distiller, work: Work) -> dict[str, float]:
    import lightning
    from distillkit_lightning import DistillationModule

    optimizer, schedule = training.optimizer_for(distiller.student, work.budget)
    scheduled = {"scheduler": schedule, "interval": "step"}
    module = DistillationModule(distiller=distiller, optimizer=lambda _: ([optimizer], [scheduled]))
    loader = DataLoader(work.examples, SCENES, shuffle=work.shuffle, collate_fn=work.collate)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, gradient_clip_val=1.0, logger=False,
        log_every_n_steps=LOG_EVERY, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=work.show,
    )  # fmt: skip
    trainer.fit(module, loader)
    logged = trainer.callback_metrics.items()
    return {name.removeprefix("train/"): value.item() for name, value in logged}


LOOPS = {
    "raw": train_raw,
    "accelerate": train_accelerate,
    "trainer": train_trainer,
    "lightning": train_lightning,
}
LIBRARIES = {
    "raw": (),
    "accelerate": ("accelerate",),
    "trainer": ("accelerate", "distillkit_transformers"),
    "lightning": ("lightning", "distillkit_lightning"),
}


# ------------------------------------------------------------------------ one run, and a table


@dataclass(frozen=True)
class Run:
    """What came of one student.

    Attributes:
        loop: the loop's name.
        seed: of the student's first weights and of the order of the scenes.
        accuracy: of the student on the test split.
        teacher_accuracy: of its teacher.
        seconds: of the loop and of the imports of its library, by the clock.
        logged: what the loop logged last.
    """

    loop: str
    seed: int
    accuracy: float
    teacher_accuracy: float
    seconds: float
    logged: dict[str, float]


def prepare(folder: Path, plan: Plan, pairs: data.Pairs) -> tuple[dict[str, Tensor], nn.Module]:
    """A stem and a teacher: read from the folder, or trained and written to it."""
    path = folder / f"teacher-{plan.train_scenes}-{plan.teacher_steps}.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        stem = models.pretrain_stem(seed=0)
        budget = training.Budget(plan.teacher_steps, TEACHER_RATE)
        trained = training.train_teacher(budget, 0, stem, pairs, lambda _: {})
        training.write_whole(path, {"stem": stem, "teacher": trained.model.state_dict()})
    saved = torch.load(path, weights_only=True)
    teacher = models.FusionEncoder()
    teacher.load_state_dict(saved["teacher"])
    return saved["stem"], teacher


def without_answers(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The recipe learns from the teacher alone, and an entry that nobody reads is an error."""
    return {name: value for name, value in batch.items() if name != "answer"}


def run(
    loop: str, seed: int, plan: Plan, folder: Path, *, shuffle: bool, show: bool, save: Path | None
) -> Run:
    """Train one student in one loop, and measure it."""
    pairs, test = data.load("train", plan.train_scenes), data.load("test", plan.test_scenes)
    stem, teacher = prepare(folder, plan, pairs)
    student = training.new_student(seed, stem)
    distiller = training.distiller_of(student, teacher, RECIPE)
    drawn = training.batches(range(plan.train_scenes), SCENES, plan.steps, seed)
    work = Work(
        examples=list(torch.cat(list(drawn)).view(-1, training.QUESTIONS_PER_SCENE)),
        collate=lambda scenes: without_answers(training.batch_of(pairs, torch.cat(scenes))),
        budget=training.Budget(plan.steps, STUDENT_RATE),
        shuffle=shuffle,
        show=show,
    )
    torch.manual_seed(seed)
    began = time.perf_counter()
    logged = LOOPS[loop](distiller, work)
    seconds = time.perf_counter() - began
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        torch.save(student.state_dict(), save / f"{loop}-{seed}.pt")
    right, teachers = (training.accuracy(model, test) for model in (student, teacher))
    return Run(loop, seed, right.mean().item(), teachers.mean().item(), seconds, logged)


def installed() -> list[str]:
    """The loops whose library is there."""
    return [
        loop for loop, needed in LIBRARIES.items() if all(map(importlib.util.find_spec, needed))
    ]


def table_of(runs: list[Run]) -> Table:
    """Mean and standard deviation of each loop over its seeds, and the seeds themselves."""
    seeds = dict.fromkeys(one.seed for one in runs)
    title = f"Test accuracy (%); the teacher's is {100 * runs[0].teacher_accuracy:.1f}"
    table = Table(title=title, title_justify="left")
    for column in ("loop", "mean", "spread", *(f"seed {seed}" for seed in seeds)):
        table.add_column(column, justify="left" if column == "loop" else "right")
    for loop in dict.fromkeys(one.loop for one in runs):
        own = [one for one in runs if one.loop == loop]
        accuracies = [100 * one.accuracy for one in own]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        cells = [f"{value:.1f}" for value in (statistics.mean(accuracies), spread, *accuracies)]
        table.add_row(loop, *cells)
    return table


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    plan = Plan(
        arguments.steps, arguments.teacher_steps, arguments.train_scenes, arguments.test_scenes
    )
    loops = installed() if arguments.loop is None else [arguments.loop]
    seeds = [arguments.seed] if arguments.seed is not None else list(range(arguments.seeds))
    is_single = len(loops) == len(seeds) == 1
    runs = [
        run(
            loop, seed, plan, arguments.teacher, shuffle=arguments.shuffle, show=is_single,
            save=arguments.save,
        )
        for seed in seeds
        for loop in loops
    ]  # fmt: skip
    Console().print(table_of(runs))
    if arguments.json is not None:
        rows = [vars(one) for one in runs]
        arguments.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", choices=LOOPS, help="one loop; by default all installed ones")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--seeds", type=int, default=3, help="without --seed: how many")
    parser.add_argument("--shuffle", action="store_true", help="each loop draws its own order")
    parser.add_argument("--steps", type=int, default=400, help="of each student")
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--train-scenes", type=int, default=3000)
    parser.add_argument("--test-scenes", type=int, default=500)
    parser.add_argument("--teacher", type=Path, default=HERE / "out", help="folder it is kept in")
    parser.add_argument("--save", type=Path, help="folder for the students' weights")
    parser.add_argument("--json", type=Path, help="file for every run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
