"""run.py from files to a trained student, without a network: tiny checkpoints, real formats.

NLVR2's teacher runs one module twice in a forward: it is run where an adapter reads that.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip(
    "accelerate", reason="Trainer needs accelerate: pip install 'distillkit[paper]'"
)
pytest.importorskip("datasets", reason="data needs datasets: pip install 'distillkit[paper]'")

import run
from dide_paper import training
from dide_paper.collate import PaperCollator
from dide_paper.tasks import TASKS
from dide_paper.teachers import load_teacher
from distillkit_transformers import ViltDualEncoder

from distillkit import errors
from tests.support import paper_files as files

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]
SPEED = ("--cpu", "--workers", "0", "--log-steps", "1", "--quiet", "--save", "no")
READS_TWO_CALLS = pytest.mark.skipif(
    not files.reads_two_calls(), reason="no adapter reads a teacher's two calls of one module"
)
SIZES = ("--batch", "4", "--device-batch", "2", "--max-steps", "2")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with every checkpoint and data set."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(3)
    files.write_checkpoint(folder / "start", "pretraining")
    for task in ("vqa", "ve", "nlvr2", "retrieval", "pretraining"):
        files.write_data(folder / "data" / task, task)
        if task != "pretraining":
            files.write_checkpoint(folder / task, task)
    return folder


def arguments(hub, out, task, *more):
    own = ["--stage", "pretrain"] if task == "pretraining" else ["--task", task]
    teacher = hub / ("start" if task == "pretraining" else task)
    if task == "ve":
        own += ["--data-labels", "entailment,neutral,contradiction"]
    return [
        *own, "--data", str(hub / "data" / task), "--teacher", str(teacher),
        "--towers", str(hub / "start"), "--out", str(out), *SPEED, *more,
    ]  # fmt: skip


def run_it(hub, out, task, *more):
    return run.run(run.parse(arguments(hub, out, task, *SIZES, *more)))


@pytest.mark.parametrize(
    ("task", "more", "metric"),
    [
        ("vqa", ("--hold-out", "2"), "eval_score"),
        ("ve", ("--eval-split", "test"), "eval_accuracy"),
        ("retrieval", ("--eval-split", "test", "--hard-negatives"), "text_recall@1"),
        pytest.param("nlvr2", ("--eval-split", "test"), "eval_accuracy", marks=READS_TWO_CALLS),
    ],
)
def test_a_task(hub, tmp_path, task, more, metric):
    measured = run_it(hub, tmp_path, task, *more)
    assert 0 <= measured[metric] <= 1
    student = ViltDualEncoder.from_pretrained(tmp_path)
    assert student.config.task == task
    if task in files.CLASSES:
        names = [name.lower() for name in files.CLASSES[task].values()]
        assert list(student.config.id2label.values()) == names


def test_train_and_validation_without_the_last_images(hub, tmp_path):
    """Two questions an image; what nobody knows the answer of is left out."""
    data = str(hub / "data" / "vqa")
    more = ("--also", f"{data}@test", "--hold-out", "1", "--no-augment")
    options = run.parse(arguments(hub, tmp_path, "vqa", *more))
    train, held = training.training_examples(TASKS["vqa"], options, files.ANSWERS)
    ids = [train[i]["id"] for i in range(len(train))]
    assert ids == [f"{data}/train/{i}" for i in range(12)] + [f"{data}/test/{i}" for i in range(4)]
    assert [held[i]["id"] for i in range(len(held))] == [f"{data}/test/{i}" for i in (4, 5)]
    scores = train[1]["labels"]
    assert scores[files.ANSWERS.index("no")].item() == pytest.approx(0.9)
    assert scores[files.ANSWERS.index("left")] == 1
    few, _ = training.training_examples(TASKS["vqa"], options, files.ANSWERS[:1])
    assert len(few) == 4  # every fourth has a vote for the only answer


def test_pretraining_then_a_task(hub, tmp_path):
    assert run_it(hub, tmp_path / "towers", "pretraining") == {}
    towers = ViltDualEncoder.from_pretrained(tmp_path / "towers")
    before = ViltDualEncoder.from_vilt(hub / "start", task="ve")
    moved = towers.text.encoder.layer[0].output.dense.weight
    assert not torch.equal(moved, before.text.encoder.layer[0].output.dense.weight)
    own = arguments(hub, tmp_path / "ve", "ve", *SIZES, "--max-steps", "1")
    own[own.index("--towers") + 1] = str(tmp_path / "towers")
    run.run(run.parse(own))  # its first step has the rate 0: nothing moves
    student = ViltDualEncoder.from_pretrained(tmp_path / "ve")
    torch.testing.assert_close(student.text.encoder.layer[0].output.dense.weight, moved)


def test_resumed_is_uninterrupted(hub, tmp_path):
    saved = ("--no-augment", "--save", "steps", "--save-steps", "1")
    run_it(hub, tmp_path / "whole", "ve", "--no-augment", "--max-steps", "3")
    run_it(hub, tmp_path / "parts", "ve", *saved, "--max-steps", "3")
    whole = ViltDualEncoder.from_pretrained(tmp_path / "whole").state_dict()
    # as if it had been killed after the second step
    shutil.rmtree(tmp_path / "parts" / "checkpoint-3")
    (tmp_path / "parts" / "model.safetensors").unlink()
    run_it(hub, tmp_path / "parts", "ve", *saved, "--max-steps", "3", "--resume")
    resumed = ViltDualEncoder.from_pretrained(tmp_path / "parts").state_dict()
    for name, x in whole.items():
        torch.testing.assert_close(resumed[name], x, rtol=1e-4, atol=1e-6, msg=name)


def test_from_a_cache(hub, tmp_path):
    """The teacher's signals of padded words, too, which the paper's mean counts."""
    cached = ("--no-augment", "--cache", str(tmp_path / "signals"))
    options = run.parse(arguments(hub, tmp_path / "out", "ve", *SIZES, *cached))
    run.run(options)
    task, teacher = TASKS["ve"], load_teacher("ve", str(hub / "ve"))
    names = training.class_names(task, teacher, None)
    processor = training.processor_of(str(hub / "start"))
    examples, _ = training.training_examples(task, options, names)
    batch = PaperCollator(task, processor, ids=True)([examples[i] for i in (5, 2, 7)])
    student = ViltDualEncoder.from_pretrained(tmp_path / "out").eval()
    cache = training.fill_cache(task, options, teacher, examples, processor)  # it is full
    found = training.make_distiller(task, student, cache).eval()(batch)
    del batch["id"]
    live = training.make_distiller(task, student, teacher).eval()(batch)
    assert not batch["attention_mask"].all()
    for name, part in live.parts.items():
        torch.testing.assert_close(found.parts[name], part, rtol=1e-4, atol=1e-6, msg=name)


def test_bfloat16(hub, tmp_path):
    run_it(hub, tmp_path, "ve", "--bf16")
    assert ViltDualEncoder.from_pretrained(tmp_path).dtype == torch.float32


def test_two_processes(hub, tmp_path):
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0",
        "PYTHONPATH": os.pathsep.join([p for p in sys.path if p]),
    }  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            str(ROOT / "examples" / "paper" / "run.py"),
            *arguments(hub, tmp_path, "ve", "--batch", "4", "--device-batch", "1"),
            "--max-steps", "2", "--eval-split", "test",
        ],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "eval_accuracy" in done.stdout
    ViltDualEncoder.from_pretrained(tmp_path)


def test_what_does_not_go_together(hub, tmp_path):
    with pytest.raises(
        errors.OptionError, match="a step of 4 examples is no number of batches of 3"
    ):
        run.run(run.parse(arguments(
            hub, tmp_path, "ve", "--batch", "4", "--device-batch", "3", "--max-steps", "1"
        )))  # fmt: skip
    with pytest.raises(errors.OptionError, match="RandAugment changes them"):
        run_it(hub, tmp_path, "ve", "--cache", str(tmp_path / "signals"))
    with pytest.raises(errors.OptionError, match="takes no --cache"):
        run_it(hub, tmp_path, "pretraining", "--no-augment", "--cache", str(tmp_path / "signals"))
    with pytest.raises(errors.OptionError, match="two pairs in an example.* no --cache"):
        run_it(hub, tmp_path, "nlvr2", "--no-augment", "--cache", str(tmp_path / "signals"))
    with pytest.raises(errors.OptionError, match="how long to pre-train is not known"):
        run.run(run.parse(arguments(hub, tmp_path, "pretraining", "--batch", "4")))
    with pytest.raises(errors.OptionError, match="--image-column"):
        run_it(hub, tmp_path, "ve", "--hold-out", "2")
    unordered = arguments(hub, tmp_path, "ve", *SIZES)
    at = unordered.index("--data-labels")
    del unordered[at : at + 2]
    with pytest.raises(errors.OptionError, match="the data numbers its classes"):
        run.run(run.parse(unordered))


@pytest.mark.parametrize(
    "wrong",
    [
        ("--stage", "pretrain", "--task", "ve"), (), ("--task", "ve", "--hard-negatives"),
        ("--stage", "pretrain", "--eval-split", "test"), ("--task", "ve", "--columns", "image"),
        ("--task", "ve", "--also", "name"), ("--task", "retrieval", "--hold-out", "3"),
        ("--task", "ve", "--hold-out", "3", "--eval-split", "test"),
        ("--task", "retrieval", "--hard-negatives", "--also", "a@b"),
    ],
)  # fmt: skip
def test_options_that_would_be_ignored(wrong, capsys):
    with pytest.raises(SystemExit):
        run.parse([*wrong, "--data", "d", "--out", "o"])
    assert "usage" in capsys.readouterr().err


def test_it_is_found_beside_its_script():
    assert Path(importlib.util.find_spec("dide_paper").origin).parents[1] == ROOT / "examples/paper"
