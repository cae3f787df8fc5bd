"""What the study trains, as data: study.toml, read into single runs."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from drawings.tasks import TASKS
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .recipes import METHODS, Method, recipe_of

Positive = Annotated[int, Field(gt=0)]
Kind = Literal["perception", "pre-training", "teacher", "pre-trained student", "student", "timing"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sizes(_Table):
    """How many examples at most."""

    train: Positive
    test: Positive
    captions: Positive


class Pretraining(_Table):
    """Of the fusion encoder that every teacher begins from, and of students that do so too."""

    steps: Positive
    student_steps: Positive  # of all steps of a student, the first ones
    batch: Positive


class TaskPlan(_Table):
    """Steps of one task, and the examples of each."""

    teacher_steps: Positive
    student_steps: Positive
    batch: Positive


class Timing(_Table):
    """Of which answers are timed."""

    scenes: Positive
    texts: Positive
    repeats: Positive


class Run(_Table):
    """One model to train, or one thing to measure. Equal digests mean equal settings.

    Attributes:
        kind: what it is.
        task: of the four; ``""`` of what all tasks share.
        method: of a student.
        seed: of weights and order.
        digest: of all that it depends on.
    """

    kind: Kind
    task: str
    method: Method | None
    seed: int
    digest: str

    @property
    def trains(self) -> bool:
        """Whether it leaves weights."""
        return self.kind not in ("perception", "timing")

    @property
    def key(self) -> str:
        """Its name in a line."""
        parts = (self.task, self.method or self.kind, str(self.seed))
        return "/".join(part for part in parts if part)


class Study(_Table):
    """The whole file."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...]
    width: Positive
    depth: Positive
    learning_rate: float
    examples: Sizes
    pretraining: Pretraining
    tasks: dict[str, TaskPlan]
    timing: Timing

    @model_validator(mode="after")
    def _tasks_are_known(self) -> Study:
        unknown = set(self.tasks).difference(TASKS)
        if unknown:
            raise ValueError(f"no task {min(unknown)!r}; there are {', '.join(TASKS)}")
        first = self.pretraining.student_steps
        for name, task in self.tasks.items():
            if task.student_steps <= first:
                raise ValueError(
                    f"{name}: of {task.student_steps} student_steps, {first} are pre-training and "
                    "none is left"
                )
        return self

    def run(self, kind: Kind, seed: int, task: str = "", method: Method | None = None) -> Run:
        """A run with the digest of its settings."""
        settings = self.model_dump(include={"width", "depth", "learning_rate", "examples"})
        settings |= {"kind": kind, "seed": seed, "task": task, "method": method}
        settings["pretraining"] = self.pretraining.model_dump()
        if task:
            settings["steps"] = self.tasks[task].model_dump()
        if method:
            settings["recipe"] = recipe_of(task, method).model_dump(mode="json", include={"terms"})
        if kind == "timing":
            settings["timing"] = self.timing.model_dump()
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Run(kind=kind, task=task, method=method, seed=seed, digest=digest)

    def parent_of(self, run: Run) -> Run:
        """The teacher of a student."""
        if run.task:
            return self.run("teacher", run.seed, run.task)
        return self.run("pre-training", run.seed)

    def runs(self) -> Iterator[Run]:
        """Seed by seed, what others begin from first."""
        yield self.run("perception", self.seeds[0])
        for seed in self.seeds:
            yield self.run("pre-training", seed)
            yield self.run("pre-trained student", seed)
            for task in self.tasks:
                yield self.run("teacher", seed, task)
                for method in METHODS:
                    yield self.run("student", seed, task, method)
                if seed == self.seeds[0]:
                    yield self.run("timing", seed, task)


def load_study(path: Path) -> Study:
    """The study file, or an error that names the file and what is wrong in it."""
    try:
        return Study.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        raise SystemExit(f"{path}: {error}") from None
