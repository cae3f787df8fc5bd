"""Which cells the models look at, put together for a picture."""

from __future__ import annotations

from collections.abc import Mapping

import data
import figures
import torch
from torch import Tensor, nn
from training import HERE, batch_of, distiller_of

import distillkit as dk
from distillkit import losses

TO_IMAGE = "attention.text_to_image"


def attention_examples(
    students: Mapping[str, nn.Module], teacher: nn.Module, pairs: data.Pairs, index: Tensor
) -> list[figures.Example]:
    """Who looks where in some pairs, and how far each student's map is from the teacher's."""
    batch = batch_of(pairs, index)
    panels: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    for name, student in students.items():
        distiller = distiller_of(student, teacher, "dide.toml").eval()
        with torch.no_grad():
            result = distiller(batch)
        distiller.close()
        theirs, its_own = (side[TO_IMAGE][-1] for side in (result.teacher, result.student))
        panels.setdefault("teacher", (theirs.probabilities(), result.teacher["logits"], None))
        kl = losses.attention_kl(its_own, theirs)
        panels[name] = (its_own.probabilities(), result.student["logits"], kl)
    return [_example(pairs, int(one), row, panels) for row, one in enumerate(index)]


def attention_page(
    students: Mapping[str, nn.Module], teacher: nn.Module, pairs: data.Pairs, index: Tensor
) -> dk.View:
    """The same as a page to look around in, with a slider from student to student."""
    batch = batch_of(pairs, index)
    with torch.no_grad():
        seen = {
            name: dk.Backbone(student.eval(), HERE / "student.toml").signals(batch)
            for name, student in students.items()
        }
        theirs = dk.Backbone(teacher.eval(), HERE / "teacher.toml").signals(batch)
    questions = [data.QUESTIONS[one] for one in pairs.question[index]]
    return dk.view(
        seen,
        theirs,
        words=[["[CLS]", *one.split(), "[SEP]"] for one in questions],
        images=[data.image_of(one) for one in pairs.scenes[pairs.scene[index]]],
    )


def first_of_each_kind(pairs: data.Pairs, digits: int | None = None) -> Tensor:
    """One pair of each kind, no two about one scene; of scenes with so many digits, if given."""
    lit = (pairs.scenes.amax(-1) > 0).sum(1)[pairs.scene]
    fits = torch.ones_like(lit, dtype=torch.bool) if digits is None else lit == digits
    chosen: list[int] = []
    for kind in range(len(data.KINDS)):
        free = ~torch.isin(pairs.scene, pairs.scene[chosen]) & (pairs.kind == kind) & fits
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
