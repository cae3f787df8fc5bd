"""Draw the picture of a report, of the demo's digits: docs/images/report.png.

    python -m tools.report_picture docs/images/report.png

A fusion teacher and a dual encoder are trained on real digits for a few hundred steps, which takes
some minutes; the student's log becomes a page, which headless Chromium photographs. ``--html``
keeps the page.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import distillkit as dk
from distillkit.__main__ import main as distillkit_main
from tests.support.browser import CHROMIUM, DRIVER, MISSING, browser

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples" / "dide"))
import data  # noqa: E402 (the modules of the demo, found by the line above)
import models  # noqa: E402
import training  # noqa: E402

RECIPE = "dide.toml"
UNTIL_HALF = {"start": 8.0, "stop": 0.0, "until": 0.5, "shape": "step"}
SCENES, WATCHED, EVERY = 16, 6, 50
SIZE = (1500, 1130)


def main() -> None:
    arguments = parse_arguments()
    if not (CHROMIUM and DRIVER):
        raise SystemExit(MISSING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "dide-digits"
        log_training(run, arguments.steps, arguments.teacher_steps)
        page = arguments.html or Path(folder) / "report.html"
        distillkit_main(["report", str(run), "-o", str(page)])
        with browser(Path(folder) / "profile", SIZE) as window:
            window.open(page)
            window.screenshot(arguments.picture)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--teacher-steps", type=int, default=500)
    parser.add_argument("--html", type=Path, help="where the page is kept")
    return parser.parse_args()


def log_training(folder: Path, steps: int, teacher_steps: int) -> None:
    """Train the demo's student for a while, with a log."""
    pairs, others = data.load("train", 5000), data.load("val", 100)
    stem = models.pretrain_stem(0)
    teacher = training.train_teacher(
        training.Budget(teacher_steps, 2e-3), 0, stem, pairs, lambda _: {}, lambda: None
    ).model
    terms = [f"attention_kl/attention.{one}" for one in ("text_to_image", "image_to_text")]
    recipe = dk.load_recipe(ROOT / "examples/dide" / RECIPE).override(
        {f"{term}.weight": UNTIL_HALF for term in terms}
    )
    distiller = dk.Distiller(
        training.new_student(0, stem), teacher, recipe, ignore=["answer"],
        student_adapter=ROOT / "examples/dide/student.toml",
        teacher_adapter=ROOT / "examples/dide/teacher.toml",
    )  # fmt: skip
    chosen = of_one_length(others)
    watch = dk.Watch(
        batch=training.batch_of(others, chosen),
        every=EVERY,
        words=[words_of(others, i) for i in chosen.tolist()],
        images=[data.image_of(others.scenes[others.scene[i]]) for i in chosen.tolist()],
        signals=["attention.text_to_image"],
    )
    optimizer, schedule = training.optimizer_for(distiller.student, training.Budget(steps, 1e-3))
    every = training.batches(range(5000), SCENES, steps, 0)
    with dk.RunLog(folder, distiller, watch=watch) as log:
        for step, index in enumerate(every):
            result = distiller(training.batch_of(pairs, index), progress=step / steps)
            optimizer.zero_grad()
            result.loss.backward()
            torch.nn.utils.clip_grad_norm_(distiller.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            log.write(result, step=step + 1)


def of_one_length(pairs: data.Pairs) -> Tensor:
    """A few pairs of scenes that differ, with questions of one length."""
    lengths = pairs.question_mask.sum(-1)[pairs.question]
    chosen: dict[int, int] = {}
    for i in (lengths == lengths[0]).nonzero().flatten().tolist():
        chosen.setdefault(int(pairs.scene[i]), i)
    return torch.tensor(list(chosen.values())[:WATCHED])


def words_of(pairs: data.Pairs, pair: int) -> list[str]:
    """The words of a pair's question, without padding."""
    ids = pairs.questions[pairs.question[pair]]
    return [data.VOCABULARY[i] for i in ids[ids != 0].tolist()]


if __name__ == "__main__":
    main()
