"""Repeat the paper: python examples/paper/run.py --task ve --data NAME --out FOLDER

Teacher, towers and data are given by their names on the Hub or by folders. The commands of every
task and stage, and what is not known, are in docs/how-to/repeat-the-paper.md. It needs
pip install 'distillkit[paper]' distillkit-transformers; several GPUs by torchrun.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from dide_paper.labels import KNOWN_ORDERS
from dide_paper.retrieval import Scorer
from dide_paper.tasks import TASKS, Task
from dide_paper.teachers import load_teacher
from dide_paper.training import (
    class_names,
    examples_of,
    fill_cache,
    make_distiller,
    make_student,
    make_trainer,
    mine_negatives,
    processor_of,
    training_examples,
)

START = "dandelin/vilt-b32-mlm"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--stage", choices=("finetune", "pretrain"), default="finetune")
    add("--task", choices=[name for name in TASKS if name != "pretraining"])
    add("--data", required=True, help="a data set on the Hub, or a folder of Parquet files")
    add("--out", required=True, help="where checkpoints and the student go")
    add("--teacher", help="name or path; the task's own by default")
    add("--towers", default=START, help="the ViLT, or the pre-trained student, of both towers")
    add("--processor", help="name or path; that of --towers by default")
    add("--recipe", help="a recipe's name or file; the task's own by default")
    add("--data-config", help="the configuration of the data set")
    add("--train-split", default="train")
    add("--also", type=_split, action="append", default=[], help="NAME@SPLIT, more to learn from")
    add("--eval-split", help="of --data; the held out images, or none, by default")
    add("--columns", type=_pairs, default={}, help="text=NAME,image=NAME ...")
    add("--data-labels", type=_names, help="the data's classes, in the order of their numbers")
    add("--teacher-labels", type=_names, help="the teacher's classes, in their order")
    add("--hold-out", type=int, default=0, help="evaluate on the last so many images")
    add("--image-column", default="image_id", help="what tells images apart, for --hold-out")
    add("--batch", type=int, help="examples of a step, of all processes together")
    add("--device-batch", type=int, help="examples at a time on each device")
    add("--epochs", type=float)
    add("--max-steps", type=int, default=-1)
    add("--mask", type=float, default=0.15, help="the part of the words hidden in pre-training")
    add("--hard-negatives", action="store_true", help="false captions as the student confuses them")
    add("--no-augment", dest="augment", action="store_false")
    add("--cache", help="a folder for the teacher's signals, computed once")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    add("--bf16", action="store_true")
    add("--fp16", action="store_true", help="the paper's precision")
    add("--cpu", action="store_true")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=8)
    add("--log-steps", type=int, default=50)
    add("--save", choices=("epoch", "steps", "no"), default="epoch")
    add("--save-steps", type=int, default=500)
    add("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    if (options.task is None) == (options.stage == "finetune"):
        parser.error("--task goes with --stage finetune, and with that alone")
    if options.stage == "pretrain" and options.eval_split:
        parser.error("pre-training has no metric: leave out --eval-split")
    if options.hard_negatives and options.task != "retrieval":
        parser.error("--hard-negatives are false captions, which the task retrieval alone has")
    if options.hard_negatives and options.also:
        parser.error("--hard-negatives are drawn from one data set: leave out --also")
    if options.hold_out and options.task in (None, "retrieval"):
        parser.error("--hold-out is of tasks with labels")
    if options.hold_out and options.eval_split:
        parser.error("--hold-out and --eval-split both say what to evaluate on: give one of them")
    return options


def _split(text: str) -> tuple[str, str]:
    """ "NAME@SPLIT" as its parts."""
    name, at, split = text.rpartition("@")
    if not (name and at and split):
        raise argparse.ArgumentTypeError(f"expected NAME@SPLIT, got {text!r}")
    return name, split


def _pairs(text: str) -> dict[str, str]:
    """ "text=a,image=left,right" as {"text": "a", "image": "left,right"}."""
    found: dict[str, str] = {}
    last = ""
    for piece in text.split(","):
        role, equals, column = piece.partition("=")
        if equals:
            last, found[role] = role, column
        elif last:
            found[last] += f",{piece}"
        else:
            raise argparse.ArgumentTypeError(f"expected NAME=COLUMN, got {piece!r}")
    return found


def _names(text: str) -> list[str]:
    return text.split(",")


def run(options: argparse.Namespace) -> dict[str, float]:
    """One training; returns what was measured at its end."""
    torch.manual_seed(options.seed)
    task: Task = TASKS[options.task or "pretraining"]
    source = options.teacher or task.teacher
    given = options.teacher_labels or (KNOWN_ORDERS.get(source) if task.name == "ve" else None)
    teacher = load_teacher(task.name, source, given)
    names = class_names(task, teacher, given)
    processor = processor_of(options.processor or options.towers)
    student = make_student(task, options.towers, names)
    train, held_out = training_examples(task, options, names)
    if options.eval_split:
        held_out = examples_of(task, options, names, options.data, options.eval_split)
    if options.hard_negatives:
        mine_negatives(train, student, processor)
    beside: Any = teacher
    if options.cache:
        beside = fill_cache(task, options, teacher, train, processor)
    distiller = make_distiller(task, student, beside, options.recipe)
    trainer = make_trainer(task, options, distiller, train, held_out, processor)
    trainer.train(resume_from_checkpoint=options.resume or None)
    trainer.save_model()
    if held_out is None:
        return {}
    if task.candidates > 1:
        column = held_out.columns["image"][0]
        return Scorer(student, processor, held_out.rows, column, held_out.captions).recalls()
    return {name: x for name, x in trainer.evaluate().items() if isinstance(x, float)}


def main() -> None:
    measured = run(parse())
    for name, value in measured.items():
        print(f"{name:<24} {value:.4f}")


if __name__ == "__main__":
    main()
