"""The command: every run that is missing, a line for each, then the tables."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from drawings import load as load_pictures
from drawings.tasks import TASKS
from torch import Tensor, nn

import distillkit as dk

from .batches import Examples
from .captions import captions_of
from .lines import LINES, append_line, read_lines
from .models import DualEncoder, FusionEncoder, Shape
from .plan import Kind, Run, Study, load_study
from .recipes import PRETRAINING, recipe_of
from .results import publish
from .timing import inference_seconds
from .training import (
    Budget,
    Known,
    Spent,
    accuracy,
    begin_from,
    teacher_signals,
    train_student,
    train_teacher,
    write_whole,
)
from .world import World, load_world, shape_of, sight_of

PICTURES = Path(__file__).parents[1]
ROOT = PICTURES.parents[1]
STUDY = Path(__file__).parent / "study.toml"
SUMMARY = "train teachers and students on drawings; what is there is not done again"
SPLITS = ("validation", "seen", "test", "new_concepts")


class Work:
    """The models of a study in a folder, trained or still to be.

    Args:
        study: what is trained.
        drawings: the folder that ``build.py`` made.
        out: where weights and lines are.
    """

    def __init__(self, study: Study, drawings: Path, out: Path) -> None:
        self.study, self.drawings, self.out = study, drawings, out
        self._known: tuple[str, Any] = ("", None)  # one teacher's signals are large

    @cached_property
    def world(self) -> World:
        return load_world(self.drawings)

    @cached_property
    def captions(self) -> Examples:
        return captions_of(self.world, load_pictures(self.drawings), self.study.examples.captions)

    def do(self, run: Run) -> dict[str, Any]:
        """Train, measure or time one; what a line says of it."""
        began = time.process_time()
        if run.kind == "perception":
            found: dict[str, Any] = {"accuracy": self._sight()}
        elif run.kind == "timing":
            found = {"timed": self._timed(run)}
        else:
            model, spent, steps = self._trained(run)
            write_whole(self._weights(run), model.state_dict())
            found = {"steps": steps, "cpu_seconds": round(spent.cpu_seconds, 2)}
            found |= {"seconds": round(spent.seconds, 2), "accuracy": self._measured(run, model)}
        whole = round(time.process_time() - began, 2)
        described = {"task": run.task, "method": run.method or run.kind, "seed": run.seed}
        return {"run": run.key, "digest": run.digest, **described, **found,
                "all_cpu_seconds": whole, **where_it_ran()}  # fmt: skip

    def is_done(self, run: Run, lines: Mapping[str, Any]) -> bool:
        """Whether nothing is left of it: its line is there, and its weights where it has some."""
        return run.digest in lines and (not run.trains or self._weights(run).exists())

    # ------------------------------------------------------------------------------- training

    def _trained(self, run: Run) -> tuple[nn.Module, Spent, int]:
        for file in (self._weights(run), self._checkpoint(run)):
            file.parent.mkdir(parents=True, exist_ok=True)
        model = self._new(run)
        self._begin(run, model)
        examples = self._examples(run.task) if run.task else self.captions
        budget, checkpoint = self._budget(run), self._checkpoint(run)
        if run.kind in ("pre-training", "teacher"):
            return model, train_teacher(model, examples, budget, run.seed, checkpoint), budget.steps
        parent = self.study.parent_of(run)
        teacher = self._loaded(parent)
        recipe = recipe_of(run.task, run.method) if run.method else dk.load_recipe(PRETRAINING)
        shape = self._shape(run)
        known = self._signals(f"{parent.digest} {run.task}", teacher, shape, examples)
        spent = train_student(
            model, teacher, recipe, shape, known, examples, budget, run.seed, checkpoint
        )
        return model, spent, budget.steps

    def _begin(self, run: Run, model: nn.Module) -> None:
        """Teachers begin from the pre-trained fusion encoder, pre-trained students from theirs."""
        kind: Kind = "pre-training" if run.kind == "teacher" else "pre-trained student"
        if run.kind == "teacher" or run.method == "pre-trained DiDE":
            begin_from(model, self._state(self.study.run(kind, run.seed)))

    def _budget(self, run: Run) -> Budget:
        """Equal steps for every student: pre-training is the first of them."""
        first = self.study.pretraining
        if not run.task:
            steps = first.steps if run.kind == "pre-training" else first.student_steps
            return Budget(steps, first.batch, self.study.learning_rate)
        settings = self.study.tasks[run.task]
        if run.kind == "teacher":
            steps = settings.teacher_steps
        else:
            before = first.student_steps if run.method == "pre-trained DiDE" else 0
            steps = settings.student_steps - before
        return Budget(steps, settings.batch, self.study.learning_rate)

    def _signals(self, key: str, teacher: nn.Module, shape: Shape, examples: Examples) -> Known:
        """Answers and maps of a teacher on all examples, kept for the students that follow."""
        if key != self._known[0]:
            self._known = ("", None)  # the old ones go before the new ones come
            self._known = (key, teacher_signals(teacher, shape, examples))
        return self._known[1]

    # ------------------------------------------------------------------------ models and their data

    def _shape(self, run: Run) -> Shape:
        return shape_of(run.task, self.world, self.study.depth, self.study.width)

    def _new(self, run: Run) -> nn.Module:
        torch.manual_seed(run.seed)
        make = FusionEncoder if run.kind in ("pre-training", "teacher") else DualEncoder
        return make(self._shape(run), self.world.words)

    def _loaded(self, run: Run) -> nn.Module:
        model = self._new(run)
        model.load_state_dict(self._state(run))
        return model.eval()

    def _state(self, run: Run) -> dict[str, Tensor]:
        return torch.load(self._weights(run), weights_only=True)

    def _examples(self, task: str, split: str = "train") -> Examples:
        sizes = self.study.examples
        return self.world.examples(task, split, sizes.train if split == "train" else sizes.test)

    def _weights(self, run: Run) -> Path:
        return self.out / "weights" / f"{run.digest}.pt"

    def _checkpoint(self, run: Run) -> Path:
        return self.out / "checkpoints" / f"{run.digest}.pt"

    # ------------------------------------------------------------------------------ measurements

    def _measured(self, run: Run, model: nn.Module) -> dict[str, float]:
        """Accuracy on every split; what is pre-trained has no task to be measured on."""
        splits = SPLITS if run.task else ()
        return {
            split: round(accuracy(model, self._examples(run.task, split)), 4) for split in splits
        }

    def _sight(self) -> dict[str, float]:
        found = sight_of(self.world, load_pictures(self.drawings))
        return {split: round(share, 4) for split, share in found.items()}

    def _timed(self, run: Run) -> dict[str, float]:
        """Seconds of every way to answer, with untrained models: weights cost nothing."""
        settings, shape = self.study.timing, self._shape(run)
        torch.manual_seed(run.seed)
        fusion, dual = (make(shape, self.world.words) for make in (FusionEncoder, DualEncoder))
        return inference_seconds(
            fusion, dual, self._examples(run.task, "test"), settings.scenes, settings.texts,
            settings.repeats,
        )  # fmt: skip


def where_it_ran() -> dict[str, str]:
    """What figures depend on, beside the settings."""
    return {"torch": torch.__version__, "machine": processor()}


def processor() -> str:
    """The processor by its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


# ---------------------------------------------------------------------------------- the command


def do_all(work: Work, runs: Sequence[Run]) -> None:
    """Do what is missing; a line is written whenever one is done."""
    path = work.out / LINES
    lines = {line["digest"]: line for line in read_lines(path)}
    left = [run for run in runs if not work.is_done(run, lines)]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are there, {len(left)} to go", flush=True)
    for run in left:
        line = work.do(run)
        append_line(path, line)
        print(f"{run.key}: {summary_of(line)}", flush=True)


def summary_of(line: Mapping[str, Any]) -> str:
    """One line for who waits."""
    shares = [f"{split} {100 * share:.1f} %" for split, share in line.get("accuracy", {}).items()]
    return ", ".join([*shares, f"{line['all_cpu_seconds']:.0f} CPU-s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=SUMMARY)
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument(
        "--drawings", type=Path, default=PICTURES / "out", help="what build.py made"
    )
    parser.add_argument("--out", type=Path, default=PICTURES / "out/study")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="only these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--docs", type=Path, help="where docs/ is; here by default")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    study = load_study(given.study)
    given.out.mkdir(parents=True, exist_ok=True)
    runs = [
        run for run in study.runs()
        if (given.seeds is None or run.seed in given.seeds)
        and (given.tasks is None or not run.task or run.task in given.tasks)
    ]  # fmt: skip
    do_all(Work(study, given.drawings, given.out), runs)
    ours = given.study.resolve() == STUDY.resolve()
    root = given.docs or (ROOT if ours else None)  # another study is not what our pages tell of
    if root is not None:
        publish(study, given.out / LINES, root)


if __name__ == "__main__":
    main()
