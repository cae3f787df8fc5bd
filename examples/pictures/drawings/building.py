"""From packages to tasks, step by step: what is there is not made again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from distillkit.errors import OptionError

from . import tasks
from .concepts import read_concepts
from .files import read_json, write_json
from .packages import fetch
from .pictures import (
    FINISHED,
    SIZE,
    SPLITS,
    Concept,
    Pictures,
    load_drawings,
    load_table,
    save_set,
    save_table,
)
from .rendering import render
from .scenes import GRID
from .sources import SETS, TEXTS, Package

_HERE = Path(__file__).parent
_OF_CONCEPTS = ("concepts.py", "words.py")
_OF_DRAWINGS = ("rendering.py",)
_OF_TASKS = (
    "entailment.py", "examples.py", "names.py", "pictures.py", "pools.py", "questions.py",
    "statements.py", "tasks.py", "words.py",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much is made.

    Attributes:
        train: about how many examples of training each task on scenes has.
        test: about how many examples each other split has.
        grid: cells on a side of a scene.

    Raises:
        OptionError: one is too small.
    """

    train: int = 30_000
    test: int = 4_000
    grid: int = GRID

    def __post_init__(self) -> None:
        for name, least in (("train", 1), ("test", 1), ("grid", 2)):
            if (given := getattr(self, name)) < least:
                raise OptionError(f"{name} is at least {least}; got {given}")


def build(folder: Path, sizes: Sizes, say: Callable[[str], None] = print) -> None:
    """Fetch, render, make tasks: what is not there yet, or was made of or by something else.

    Two builds of one folder at a time disturb each other.

    Args:
        folder: where everything lies.
        sizes: of the tasks.
        say: is told what is being done.

    Raises:
        OptionError: packages that cannot be had, or that hold something else.
    """
    steps = _Steps(folder, say)
    packages = folder / "packages"

    def fetched(wanted: Sequence[Package]) -> str:
        for package in wanted:
            if not (packages / package.folder).exists():
                steps.begin(f"fetch {package.name}@{package.version}")
                fetch(package, packages)
        return repr([(package.name, package.version) for package in wanted])

    table = folder / "concepts.json"
    made_of = _digest(fetched(TEXTS), *_OF_CONCEPTS)
    steps.run("concepts", made_of, lambda: save_table(table, read_concepts(packages)))
    concepts = load_table(table)

    fetched([drawn.package for drawn in SETS])
    all_sets = []
    for drawn in SETS:
        made_of = _digest([fetched([drawn.package]), SIZE, _asked(concepts)], *_OF_DRAWINGS)
        file = folder / "sets" / f"{drawn.name}.npz"
        steps.run(
            f"drawings of {drawn.name}",
            made_of,
            lambda file=file, drawn=drawn: save_set(file, *render(drawn, packages, concepts)),
        )
        all_sets.append(made_of)

    @cache
    def pictures() -> Pictures:
        return load_drawings(folder)

    def make(task: str, split: str) -> None:
        size = sizes.train if split == "train" else sizes.test
        tasks.save(folder, tasks.make(pictures(), task, split, size, sizes.grid))

    made_of = _digest([all_sets, concepts, asdict(sizes)], *_OF_TASKS)
    for task in tasks.TASKS:
        for split in SPLITS:
            steps.run(f"{task} {split}", made_of, lambda task=task, split=split: make(task, split))
    steps.finish(sizes)


class _Steps:
    """Steps that were done note what was made of what; one is done again where that differs."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say

    def run(self, name: str, made_of: str, make: Callable[[], None]) -> None:
        """Make something, unless it was made of the same."""
        note = self._folder / "steps" / f"{name.replace(' ', '-')}.json"
        if note.exists() and read_json(note) == made_of:
            return
        self.begin(name)
        note.unlink(missing_ok=True)
        make()
        write_json(note, made_of)

    def begin(self, name: str) -> None:
        """Say what begins; the folder is not finished any more."""
        self._say(name)
        (self._folder / FINISHED).unlink(missing_ok=True)

    def finish(self, sizes: Sizes) -> None:
        """Say to readers that everything is there."""
        if not (self._folder / FINISHED).exists():
            write_json(self._folder / FINISHED, asdict(sizes))


def _asked(concepts: Sequence[Concept]) -> list[tuple[str, tuple[str, ...]]]:
    """What sets are asked for."""
    return [(concept.code, concept.names) for concept in concepts]


def _digest(made_of: object, *code: str) -> str:
    digest = hashlib.sha256(repr(made_of).encode())
    for file in code:
        digest.update((_HERE / file).read_bytes())
    return digest.hexdigest()
