"""The four tasks of a folder: made from its drawings, written, and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distillkit.errors import OptionError, did_you_mean

from . import entailment, names, questions, statements
from .examples import Example, Task
from .files import read_json, write_json
from .pictures import SPLITS, Pictures, check_built
from .pools import make_pool, random_of

__all__ = ["SPLITS", "TASKS", "Example", "Task", "load", "make"]

TASKS = ("vqa", "ve", "nlvr2", "retrieval")


def load(folder: str | Path, task: str, split: str) -> Task:
    """The examples of a task in a folder that ``build.py`` built.

    Args:
        folder: the one given to ``build.py --out``.
        task: ``"vqa"``, ``"ve"``, ``"nlvr2"`` or ``"retrieval"``.
        split: ``"train"``; ``"seen"``, new scenes by the same artists (in retrieval: drawings kept
            out of all training); ``"validation"`` and ``"test"``, scenes by other artists;
            ``"new_concepts"``, scenes by the artists of test of what training never shows.

    Raises:
        OptionError: no such task or split; nothing was built there, or not all.
    """
    _check(task, split)
    held = read_json(check_built(folder) / _file(task, split))
    examples = tuple(
        Example(np.array(scenes), held["texts"][text], label, held["kinds"][kind])
        for scenes, text, label, kind in held["examples"]
    )
    return Task(task, split, tuple(held["answers"]), examples)


def make(pictures: Pictures, task: str, split: str, size: int, grid: int) -> Task:
    """The examples of a task, the same ones every time.

    Args:
        pictures: all drawings.
        task: as of :func:`load`.
        split: as of :func:`load`.
        size: about how many examples, for the tasks that draw scenes.
        grid: cells on a side of a scene.

    Raises:
        OptionError: no such task or split; too few drawings.
    """
    _check(task, split)
    if task == "retrieval":
        answers = names.answers(pictures)
        examples = names.make_names(pictures, split, grid)
    else:
        pool, random = make_pool(pictures, split, grid), random_of(task, split)
        if task == "vqa":
            answers = questions.answers(pictures, grid)
            examples = questions.make_questions(pool, answers, size, random)
        elif task == "ve":
            answers = entailment.ANSWERS
            examples = entailment.make_hypotheses(pool, size, random)
        else:
            answers = statements.ANSWERS
            examples = statements.make_statements(pool, size, random)
    order = random_of(f"order of {task}", split).permutation(len(examples))
    return Task(task, split, answers, tuple(examples[place] for place in order))


def save(folder: Path, task: Task) -> None:
    """Write a task, whole or not at all; texts and kinds once each."""
    texts = {text: number for number, text in enumerate(sorted({*task.texts}))}
    kinds = {kind: number for number, kind in enumerate(sorted({e.kind for e in task.examples}))}
    rows = [[e.scenes.tolist(), texts[e.text], e.label, kinds[e.kind]] for e in task.examples]
    held = {"answers": task.answers, "texts": [*texts], "kinds": [*kinds], "examples": rows}
    write_json(folder / _file(task.name, task.split), held)


def _file(task: str, split: str) -> str:
    return f"tasks/{task}-{split}.json"


def _check(task: str, split: str) -> None:
    for what, given, known in (("task", task, TASKS), ("split", split, SPLITS)):
        if given not in known:
            raise OptionError(f"no {what} {given!r}: {did_you_mean(given, known)}")
