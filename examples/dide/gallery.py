"""Viewers of the demo's models on their way: where teacher and students look, step by step.

    python examples/dide/gallery.py --out build/gallery

trains the teacher, a student by DiDE and one by soft labels alone, in a few minutes, and writes a
page of `dk.view` for each student, with a slider over its training. The site's gallery shows them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import data
import models
import torch
from attention_examples import first_of_each_kind
from torch import Tensor, nn
from training import (
    STUDENT_RATE,
    TEACHER_RATE,
    Budget,
    accuracy,
    batch_of,
    distiller_of,
    new_student,
    teacher_signals,
    train_student,
    train_teacher,
)

import distillkit as dk

HERE = Path(__file__).parent
SHOWN = ("attention.text_to_image", "attention.image_to_text")


class Way(NamedTuple):
    """One student of the gallery."""

    file: str
    recipe: str
    title: str
    text: str


WAYS = (
    Way(
        "dide.html",
        "dide.toml",
        "A student that learns where to look",
        "A dual encoder learns the answers and the cross-modal attention of a fusion encoder "
        "(DiDE), {steps} steps long. Move the checkpoint: its attention becomes the teacher's.",
    ),
    Way(
        "soft-labels.html",
        "soft.toml",
        "A student that learns the answers alone",
        "The same dual encoder with soft labels and nothing else, as long. What it attends to "
        "stays its own: the KL of each word says how far it is from the teacher.",
    ),
)


def examples_of(pairs: data.Pairs) -> Tensor:
    """Six pairs: one of each kind of question, and three more about other scenes."""
    first = first_of_each_kind(pairs)
    shown = set(pairs.scene[first].tolist())
    more = [i for i in range(0, len(pairs.scene), 9) if int(pairs.scene[i]) not in shown]
    return torch.cat([first, torch.tensor(more[:3])])


def signals_of(model: nn.Module, adapter: str, batch: dict[str, Tensor]) -> dk.Signals:
    """The attention between words and cells of every layer."""
    training = model.training
    model.eval()
    backbone = dk.Backbone(model, HERE / adapter)
    with torch.no_grad():
        signals = backbone.signals(batch).only(*SHOWN)
    backbone.close()
    model.train(training)
    return signals


def words_of(pairs: data.Pairs, index: Tensor) -> list[list[str]]:
    """The words of each pair's question, padding included."""
    questions = pairs.questions[pairs.question[index]]
    return [[data.VOCABULARY[word] for word in question] for question in questions.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "out/gallery")
    parser.add_argument("--teacher-steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=1200, help="of each student")
    parser.add_argument("--scenes", type=int, default=3000, help="of the training")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    training, test = data.load("train", arguments.scenes), data.load("test", 100)
    index = examples_of(test)
    batch = batch_of(test, index)
    images = [data.image_of(test.scenes[scene]) for scene in test.scene[index]]
    stem = models.pretrain_stem(0)

    def measure(model: nn.Module) -> dict[str, float]:
        return {"accuracy": accuracy(model, test).mean().item()}

    budget = Budget(arguments.teacher_steps, TEACHER_RATE, readings=1)
    teacher = train_teacher(budget, 0, stem, training, measure)
    print(f"teacher: right {teacher.readings[-1].values['accuracy']:.0%}")
    theirs = signals_of(teacher.model, "teacher.toml", batch)
    listed = []
    for way in WAYS:
        student = new_student(0, stem)
        steps = {"step 0": signals_of(student, "student.toml", batch)}
        distiller = distiller_of(student, teacher.model, way.recipe)
        with tempfile.TemporaryDirectory() as folder:  # of this teacher alone
            backbone = dk.Backbone(teacher.model, HERE / "teacher.toml")
            known = teacher_signals(backbone, way.recipe, training, Path(folder))
        budget = Budget(arguments.steps, STUDENT_RATE, readings=6)
        every = max(1, budget.steps // budget.readings)

        def note(
            model: nn.Module, steps: dict[str, dk.Signals] = steps, every: int = every
        ) -> dict[str, float]:
            steps[f"step {every * len(steps)}"] = signals_of(model, "student.toml", batch)
            return measure(model)

        trained = train_student(distiller, budget, 0, known, training, note)
        print(f"{way.recipe}: right {trained.readings[-1].values['accuracy']:.0%}")
        page = dk.view(steps, theirs, words=words_of(test, index), images=images, signals=SHOWN)
        print(f"{page.save(out / way.file)}: {page!r}")
        text = way.text.format(steps=arguments.steps)
        listed.append({"file": way.file, "title": way.title, "text": text})
    # written last: it says that the others are there
    (out / "gallery.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
