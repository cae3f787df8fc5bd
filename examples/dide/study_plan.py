"""What the study trains, as data: study/study.toml, read into single runs."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

HERE = Path(__file__).parent
STUDY = HERE / "study"
ROOT = HERE.parents[1]
Part = Literal["comparison", "equal time", "ablation", "control", "search", "final"]
Seed = Annotated[int, Field(ge=0)]
Steps = Annotated[int, Field(gt=0)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Scenes(_Table):
    """How many of each split; unlabelled ones are made of the training scans too."""

    train: int
    val: int
    test: int
    unlabelled: int = 0


class Teacher(_Table):
    """Fusion encoders, one for each seed."""

    name: str
    steps: Steps
    seeds: tuple[Seed, ...]
    learning_rate: float = 2e-3


class Student(_Table):
    """Dual encoders by one recipe: one for each number of steps and each seed."""

    name: str
    part: Part
    recipe: str  # a file beside study.toml
    steps: tuple[Steps, ...]
    seeds: tuple[Seed, ...]
    title: str = ""  # the name in the final comparison and its pictures
    note: str = ""  # what it is, for the reader of the results
    teacher: str = "teacher"
    learning_rate: float = 1e-3
    start: Literal["scratch", "teacher"] = "scratch"
    student_adapter: str = "student.toml"
    teacher_adapter: str = "teacher.toml"
    whole: bool = False  # the student's attention over both modalities is offered too
    maps: Literal["own", "of another scene"] = "own"
    pretraining: Annotated[float, Field(ge=0, le=1)] = 0  # share of the steps, unlabelled scenes


class Timing(_Table):
    """One depth of which answers are timed."""

    key: str
    digest: str
    depth: int
    scenes: tuple[int, ...]
    questions: tuple[int, ...]
    repeats: int


class Throughput(_Table):
    """Which N scenes x M questions are timed, with models of which depths."""

    depths: tuple[int, ...]
    scenes: tuple[int, ...]
    questions: tuple[int, ...]
    repeats: int = 3

    def runs(self) -> list[Timing]:
        """One for each depth."""
        settings = self.model_dump(exclude={"depths"})
        return [
            Timing(
                key=f"throughput/{d}", digest=_digest(settings | {"depth": d}), depth=d, **settings
            )
            for d in self.depths
        ]


class Run(_Table):
    """One model to train. Equal digests mean equal settings, down to the recipe's text."""

    key: str
    digest: str
    seed: int
    steps: int
    model: Teacher | Student

    @property
    def is_tested(self) -> bool:
        """Settings are chosen on validation scenes; only what was settled sees the test scenes."""
        return isinstance(self.model, Teacher) or self.model.part != "search"


class Study(_Table):
    """The whole file."""

    scenes: Scenes
    teachers: tuple[Teacher, ...]
    students: tuple[Student, ...]
    throughput: Throughput
    read_every: Steps = 200  # steps; checkpoints are written then, too

    @model_validator(mode="after")
    def _names_fit(self) -> Study:
        names = [one.name for one in (*self.teachers, *self.students)]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"several models are called {min(twice)!r}")
        teachers = {one.name: set(one.seeds) for one in self.teachers}
        for student in self.students:
            if student.teacher not in teachers:
                raise ValueError(
                    f"{student.name!r} learns from {student.teacher!r}; there is {sorted(teachers)}"
                )
            alone = set(student.seeds) - teachers[student.teacher]
            if alone:
                raise ValueError(
                    f"{student.name!r} has seed {min(alone)}, for which {student.teacher!r} is not "
                    "trained"
                )
            if not (STUDY / student.recipe).is_file():
                raise ValueError(f"{student.name!r}: there is no recipe study/{student.recipe}")
        return self

    def runs(self) -> Iterator[Run]:
        """Teachers first, then seed by seed."""
        for teacher in self.teachers:
            for seed in teacher.seeds:
                yield self._run(teacher, teacher.steps, seed)
        for seed in sorted({seed for one in self.students for seed in one.seeds}):
            for student in self.students:
                for steps in student.steps if seed in student.seeds else ():
                    yield self._run(student, steps, seed)

    def teacher_of(self, run: Run) -> Run:
        """The teacher that a student's run learns from."""
        assert isinstance(run.model, Student)
        teacher = next(one for one in self.teachers if one.name == run.model.teacher)
        return self._run(teacher, teacher.steps, run.seed)

    def _run(self, model: Teacher | Student, steps: int, seed: int) -> Run:
        settings = model.model_dump(exclude={"steps", "seeds", "note", "title", "name", "part"})
        settings |= {"steps": steps, "seed": seed, "scenes": self.scenes.model_dump()}
        if isinstance(model, Student):
            settings["recipe"] = tomllib.loads((STUDY / model.recipe).read_text(encoding="utf-8"))
            settings["recipe"].pop("summary", None)
            for side in ("student_adapter", "teacher_adapter"):
                settings[side] = (HERE / getattr(model, side)).read_text(encoding="utf-8")
            teacher = next(one for one in self.teachers if one.name == model.teacher)
            settings["teacher"] = self._run(teacher, teacher.steps, seed).digest
        key = f"{model.name}/{steps}/{seed}"
        return Run(key=key, digest=_digest(settings), seed=seed, steps=steps, model=model)


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def load_study(path: Path) -> Study:
    """The study file, or an error that names the file and what is wrong in it."""
    try:
        return Study.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        raise SystemExit(f"{path}: {error}") from None
