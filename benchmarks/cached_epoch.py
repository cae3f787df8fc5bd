"""What an epoch of the demo costs with its teacher in every step, and with the teacher's signals.

    python benchmarks/cached_epoch.py --json cached_epoch.json

A dual encoder learns by DiDE from a fusion encoder (examples/dide), on all pairs of some hundred
scenes of handwritten digits. All ways train the same student on the same batches in the same order;
the last loss is printed to show it. Filling is the price of the others, once.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import arguments, report, table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "dide"))

import data
import models
from training import batch_of, batches, new_student

import distillkit as dk

HERE = Path(models.__file__).parent
RECIPE = HERE / "dide.toml"
SCENES = 16  # in a step


def epoch(distiller: dk.Distiller, steps: list[dict[str, Tensor]]) -> float:
    """Train once through the batches; the last loss."""
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-2)
    for batch in steps:
        loss = distiller(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def main() -> None:
    options = arguments(__doc__.splitlines()[0], examples=400)
    torch.set_num_threads(1)
    pairs = data.load("train", options.examples)
    stem = models.pretrain_stem(0)
    torch.manual_seed(0)
    teacher = models.FusionEncoder()
    models.load_stem(teacher, stem)
    student = new_student(0, stem)
    count = options.examples // SCENES
    drawn = list(batches(range(options.examples), SCENES, count, 0))
    steps = [{**batch_of(pairs, index), "pair": index} for index in drawn]
    adapters = {"student_adapter": HERE / "student.toml", "ignore": ["pair", "answer"]}
    with tempfile.TemporaryDirectory() as folder:
        # pairs are numbered anew in each batch: nothing of their entries is the same in another
        cache = dk.SignalCache(folder, RECIPE, inputs=())
        began = time.perf_counter()
        backbone = dk.Backbone(teacher, HERE / "teacher.toml")
        filled = cache.fill(backbone, steps, key="pair", progress=False)
        seconds = time.perf_counter() - began
        read = [{**step, "teacher_signals": cache.signals(step["pair"])} for step in steps]

        def live() -> dk.Distiller:
            return dk.Distiller(
                copy.deepcopy(student), teacher, RECIPE,
                teacher_adapter=HERE / "teacher.toml", **adapters,
            )  # fmt: skip

        def cached() -> dk.Distiller:
            return dk.Distiller(copy.deepcopy(student), cache, RECIPE, **adapters)

        def told() -> dk.Distiller:
            return dk.Distiller(copy.deepcopy(student), None, RECIPE, **adapters)

        ways: dict[str, tuple[Callable[[], dk.Distiller], list[dict[str, Tensor]]]] = {
            "the teacher in every step": (live, steps),
            "its signals, read in every step": (cached, steps),
            "its signals, read beforehand (as by workers)": (told, read),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        losses: dict[str, float] = {}
        for _ in range(options.rounds or 5):
            for name, (make, batches_of_way) in ways.items():
                distiller = make()
                busy = time.process_time()
                losses[name] = epoch(distiller, batches_of_way)
                times[name].append(time.process_time() - busy)
                distiller.close()
    first = next(iter(times))
    rows = [
        [
            name,
            f"{statistics.median(found):.2f}",
            f"{1000 * statistics.median(found) / count:.1f}",
            f"{statistics.median(a / b for a, b in zip(found, times[first], strict=True)):.2f}",
            f"{losses[name]:.6f}",
        ]
        for name, found in times.items()
    ]
    heads = ["an epoch with", "CPU s", "CPU ms a step", "of the first", "last loss"]
    title = (
        f"An epoch of the demo: {len(pairs.answer)} pairs, {count} steps; filling took "
        f"{seconds:.1f} s once, {filled.bytes / filled.stored:.0f} bytes a pair"
    )
    report(options, "cached_epoch", {title: table(heads, rows)}, times)


if __name__ == "__main__":
    main()
