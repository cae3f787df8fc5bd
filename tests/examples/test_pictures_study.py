"""The study on drawings: every method end to end, again after a kill, and its tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import drawings
import pytest
import torch
from drawings.tasks import TASKS
from drawings.tasks import load as load_task
from pictures_study import (
    batches,
    captions,
    command,
    models,
    recipes,
    results,
    timing,
    words,
    world,
)
from pictures_study.lines import read_lines
from pictures_study.plan import load_study

from tests.support import small_pictures

ROOT = Path(__file__).parents[2]
STUDY = """
seeds = [0]
width = 16
depth = 2
learning_rate = 1e-3
examples = {{ train = 60, test = 20, captions = 40 }}
pretraining = {{ steps = 4, student_steps = 2, batch = 4 }}
timing = {{ scenes = 3, texts = 2, repeats = 1 }}
"""
TASK = "\n[tasks.{task}]\nteacher_steps = 4\nstudent_steps = {steps}\nbatch = 8\n"
SMALL = STUDY.format() + "".join(TASK.format(task=t, steps=6) for t in TASKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("drawings")
    small_pictures.write(made)
    return made


def started(folder, study, out, *more):
    command = [sys.executable, str(ROOT / "examples/pictures/study.py"), "--drawings", str(folder),
               "--study", str(study), "--out", str(out), *more]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process):
    printed, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    return printed


def page_in(root):
    """A documentation that has a place for every table."""
    path = root / results.PAGE
    path.parent.mkdir(parents=True)
    blocks = [f"<!-- begin {name} -->\n<!-- end {name} -->" for name in results.BLOCKS]
    path.write_text("\n\n".join(["before", *blocks, "after"]), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A whole small study: its folder, its pages."""
    out, root = tmp_path_factory.mktemp("out"), page_in(tmp_path_factory.mktemp("root"))
    study = out / "study.toml"
    study.write_text(SMALL, encoding="utf-8")
    printed = finished(started(folder, study, out, "--docs", str(root)))
    assert "0 of 27 runs are there, 27 to go" in printed
    return out, root


def test_the_whole_of_a_small_study(whole):
    out, root = whole
    lines = {line["run"]: line for line in read_lines(out / "results.jsonl")}
    assert len(lines) == 27
    kinds = ("teacher", *recipes.METHODS)
    for task in TASKS:
        for kind in kinds:
            line = lines[f"{task}/{kind}/0"]
            assert line["accuracy"].keys() == set(command.SPLITS)
            assert line["steps"] == (4 if kind in ("teacher", "pre-trained DiDE") else 6)
        assert list(lines[f"{task}/timing/0"]["timed"]) == list(timing.WAYS)
    assert (root / "docs/pictures.jsonl").read_text(encoding="utf-8") == "".join(
        json.dumps(line) + "\n" for line in results.read_results(
            out / "results.jsonl", load_study(out / "study.toml")
        ).lines
    )  # fmt: skip
    text = (root / results.PAGE).read_text(encoding="utf-8")
    assert text.startswith("before")
    assert text.endswith("after")
    assert "27 of the 27 runs" in text
    share = 100 * lines["ve/DiDE/0"]["accuracy"]["seen"]
    assert f"| entailment | DiDE | {share:.1f} |" in text
    assert "| 2 + 4 |" in text  # pre-trained, then trained
    assert "one seed: no verdict" in text
    assert len([row for row in text.splitlines() if row.startswith("| names (retrieval) | ")]) == 9


def test_the_page_shows_the_committed_lines():
    found = results.read_results(ROOT / results.LINES_OF_DOCS, load_study(command.STUDY))
    text = (ROOT / results.PAGE).read_text(encoding="utf-8")
    assert all(f"<!-- begin {name} -->" in text for name in results.BLOCKS)
    assert results.written(text, found) == text, "run make pictures"


def test_what_is_there_is_not_trained_again(folder, whole, tmp_path):
    out, _ = whole
    before = (out / "results.jsonl").read_bytes()
    assert "27 of 27 runs are there, 0 to go" in finished(started(folder, out / "study.toml", out))
    assert (out / "results.jsonl").read_bytes() == before


def test_a_killed_study_goes_on_to_the_same_weights(folder, tmp_path):
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format() + TASK.format(task="nlvr2", steps=30), encoding="utf-8")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    plan = load_study(study)
    straight.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the command does
    try:
        command.do_all(command.Work(plan, folder, straight), list(plan.runs()))
    finally:
        torch.set_num_threads(threads)
    run = plan.run("student", 0, "nlvr2", "DiDE")
    checkpoint = killed / "checkpoints" / f"{run.digest}.pt"
    process = started(folder, study, killed)
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with (killed / "results.jsonl").open("a") as file:
        file.write('{"run": "half a li')
    assert torch.load(checkpoint, weights_only=True)["done"][0] >= 3
    printed = finished(started(folder, study, killed))
    assert "nlvr2/DiDE/0: validation" in printed
    assert "nlvr2/soft labels/0" not in printed
    assert not list((killed / "checkpoints").iterdir())
    weights = sorted(path.name for path in (straight / "weights").iterdir())
    assert weights == sorted(path.name for path in (killed / "weights").iterdir())
    for name in weights:
        one, other = (torch.load(out / "weights" / name) for out in (straight, killed))
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[tasks.ve]", "[tasks.vee]", "no task 'vee'"),
        ("student_steps = 6", "student_steps = 2", "none is left"),
        ("width", "widht", "widht"),
    ],
)
def test_a_study_with_a_mistake_is_refused(tmp_path, old, new, complaint):
    path = tmp_path / "study.toml"
    path.write_text(SMALL.replace(old, new), encoding="utf-8")
    with pytest.raises(SystemExit, match=complaint):
        load_study(path)


def test_other_settings_have_other_digests(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(SMALL, encoding="utf-8")
    runs = {run.key: run.digest for run in load_study(path).runs()}
    path.write_text(SMALL.replace("teacher_steps = 4", "teacher_steps = 5", 1), encoding="utf-8")
    others = {run.key: run.digest for run in load_study(path).runs()}
    changed = {key.split("/")[0] for key in runs if runs[key] != others[key]}
    assert changed == {TASKS[0]}
    assert len(set(runs.values())) == len(runs)


def test_words_that_name_one_thing_are_one_word():
    vocabulary = words.Vocabulary(["land vehicle", "cat", "cat face"], ["is there a cat"])
    assert vocabulary.split("no cat face, one land vehicle, catlike") == [
        "no", "cat face", ",", "one", "land vehicle", ",", "catlike",
    ]  # fmt: skip
    rows = vocabulary.encode(["cat", "is there a cat"])
    assert rows[0].tolist() == [1, vocabulary["cat"], 0, 0, 0]
    with pytest.raises(KeyError):
        vocabulary["dog"]


def test_a_word_attends_to_what_is_like_it_before_any_training():
    torch.manual_seed(0)
    shape = models.Shape(answers=4, features=34, length=3, grid=(2, 2), width=64)
    things = torch.nn.functional.layer_norm(torch.randn(4, 32), (32,))
    vectors = batches.with_marks(things)
    model = models.FusionEncoder(shape, vectors[:4])
    read = model.words(torch.arange(4)[:, None])
    cells = model.cells(vectors[:4].expand(4, -1, -1), torch.zeros(4, dtype=torch.long))
    block = model.encoder.blocks[0]
    tokens = block.attention_norm(torch.cat([read, cells], 1))
    query, key, _ = block.attention.qkv(tokens).chunk(3, -1)
    scores = (query @ key.transpose(1, 2))[:, 0, 2:]  # of the word with each cell
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]
    assert (scores.max(1).values > (query @ key.transpose(1, 2))[:, 0, 0]).all()  # nor to itself


def test_candidates_hold_the_own_name_first_and_no_name_twice(folder):
    examples = world.load_world(folder).examples("retrieval", "train", 50)
    text = examples.text
    assert text.shape[1] == 8
    assert all(len(set(row)) == 8 for row in text.tolist())
    held = load_task(folder, "retrieval", "train")
    texts = sorted({example.text for example in held.examples[:50]})
    assert [texts[row[0]] for row in text.tolist()] == [e.text for e in held.examples[:50]]


def test_captions_are_true_and_wrong_ones_are_not(folder):
    made, pictures = world.load_world(folder), drawings.load(folder)
    examples = captions.captions_of(made, pictures, 30)
    split = {phrase: number for number, phrase in enumerate(made.vocabulary.words)}
    for scene, texts in zip(examples.scenes[:, 0].tolist(), examples.text, strict=True):
        shown = [pictures.table[pictures.concepts[n]] for n in scene if n >= 0]
        true = {split[p] for concept in shown for p in (concept.name, *concept.classes)}
        said = [set(examples.words[t].tolist()) - {0, 1} for t in texts]
        assert said[0] <= true
        assert all(not wrong <= true for wrong in said[1:])


def test_perception_brings_drawings_near_to_their_class(folder):
    found = world.sight_of(world.load_world(folder), drawings.load(folder))
    assert found["seen"] > 0.6  # drawings that it did not learn from
    assert found["new_concepts"] < found["seen"]  # of these classes, but as noise has them
