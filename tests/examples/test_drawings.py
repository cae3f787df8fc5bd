"""Drawings and tasks from packages in their real formats, without a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "resvg_py", reason="drawings are rendered by resvg: pip install 'distillkit[pictures]'"
)

import baselines
import drawings
from drawings import building, entailment, pools, questions
from drawings.shortcuts import measure, share_right
from drawings.sources import ARTISTS, SETS
from drawings.tasks import SPLITS, TASKS

from distillkit.errors import OptionError
from tests.support import drawing_packages

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples/pictures"
SIZES = building.Sizes(train=600, test=200)
FLAGS = ("--train", str(SIZES.train), "--test", str(SIZES.test))
SCENES = TASKS[:3]


def start(script, *arguments, **environment):
    command = [sys.executable, str(PICTURES / script), *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def run(script, *arguments, **environment):
    with start(script, *arguments, **environment) as process:
        out, said = process.communicate(timeout=300)
    return process.returncode, out, said


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    drawing_packages.write(folder / "packages")
    status, out, said = run("build.py", "--out", folder, *FLAGS, PYTHONHASHSEED="1")
    assert status == 0, said
    return folder, out, said


@pytest.fixture(scope="module")
def pictures(built):
    return drawings.load(built[0])


@pytest.fixture(scope="module")
def every_task(built):
    return {(t, s): drawings.tasks.load(built[0], t, s) for t in TASKS for s in SPLITS}


def test_a_build_says_what_it_made_and_whose_it_is(built):
    _, out, said = built
    assert "drawings of noto\n" in said
    assert "fetch" not in said  # everything lay there
    for drawn in SETS:
        (line,) = [line for line in out.splitlines() if line.startswith(f"| {drawn.name} |")]
        assert line.endswith(f"| {drawn.package.licence} |")
    assert len([line for line in out.splitlines() if "| new_concepts |" in line]) == len(TASKS)


def test_a_second_build_does_nothing(built):
    folder, out, _ = built
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    status, again, said = run("build.py", "--out", folder, *FLAGS)
    assert (status, again) == (0, out)
    assert len(said.splitlines()) == 1  # the seconds
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_a_killed_build_goes_on_and_ends_as_if_it_had_not_been(built, tmp_path):
    drawing_packages.write(tmp_path / "packages")
    for stop in ("drawings of fluent\n", "vqa test\n"):
        with start("build.py", "--out", tmp_path, *FLAGS, PYTHONHASHSEED="2") as process:
            while process.stderr.readline() != stop:
                assert process.poll() is None
            time.sleep(0.01)
            process.kill()
        with pytest.raises(OptionError, match=r"holds no drawings, or not all: python .*build.py"):
            drawings.load(tmp_path)
    status, _, said = run("build.py", "--out", tmp_path, *FLAGS, PYTHONHASHSEED="3")
    assert status == 0, said
    assert "drawings of noto\n" not in said
    again = drawing_packages.files(tmp_path)
    assert not [name for name in again if "unfinished" in name]
    assert again == drawing_packages.files(built[0])


def test_other_sizes_make_the_tasks_anew_and_nothing_else(tmp_path, built):
    shutil.copytree(built[0], tmp_path, dirs_exist_ok=True)
    said: list[str] = []
    building.build(tmp_path, replace(SIZES, test=100), said.append)
    assert said == [f"{task} {split}" for task in TASKS for split in SPLITS]
    assert len(drawings.tasks.load(tmp_path, "nlvr2", "test")) == 100


def test_artists_and_drawings_of_splits_are_disjoint(pictures, every_task):
    used = {split: {*pictures.artists[pictures.of_split(split)]} for split in SPLITS}
    for split, artists in ARTISTS.items():
        assert used[split] == {*artists}
    assert used["seen"] <= {*ARTISTS["train"]}
    assert used["new_concepts"] == {*ARTISTS["test"]}
    for (task, split), made in every_task.items():
        shown = made.scenes[made.scenes >= 0]
        source = "train" if split == "seen" and task != "retrieval" else split
        assert {*pictures.splits[shown]} == {source}
    trained = {*pictures.concepts[pictures.of_split("train")]}
    for split in SPLITS:
        shown = {*pictures.concepts[pictures.of_split(split)]}
        assert shown.isdisjoint(trained) if split == "new_concepts" else shown <= trained


def test_no_split_of_a_task_repeats_the_scenes_of_training(every_task):
    for task in TASKS:
        trained = {e.scenes.tobytes() for e in every_task[task, "train"].examples}
        for split in SPLITS[1:]:
            assert trained.isdisjoint(e.scenes.tobytes() for e in every_task[task, split].examples)


def test_labels_are_those_of_reading_beside_the_true_contents(pictures, every_task):
    for made in every_task.values():
        assert share_right(made, pictures) == 1
    made = every_task["ve", "test"]
    wrong = replace(made.examples[0], label=(made.examples[0].label + 1) % 3)
    changed = replace(made, examples=(wrong, *made.examples[1:]))
    assert share_right(changed, pictures) == 1 - 1 / len(made)


def labels_by(made, key):
    found = defaultdict(Counter)
    for example in made.examples:
        found[key(example)][example.label] += 1
    return found.values()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("task", "answers"), [("ve", 3), ("nlvr2", 2)])
def test_every_text_and_every_scene_has_every_label_equally_often(every_task, task, split, answers):
    made = every_task[task, split]
    for key in (lambda e: e.text, lambda e: e.scenes.tobytes()):
        for counts in labels_by(made, key):
            assert len(counts) == answers
            assert len({*counts.values()}) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_has_its_answers_equally_often(every_task, split):
    made = every_task["vqa", split]
    answers = {"is there": 2, "how many": 3, "where": 4}
    shares = Counter(example.kind for example in made.examples)
    kinds = questions.KINDS if split != "new_concepts" else questions.KINDS[:-1]
    assert shares.keys() == {*kinds}  # nobody can name what training never names
    assert max(shares.values()) - min(shares.values()) <= 2 * 16  # blocks are whole
    for kind, number in answers.items():
        own = replace(made, examples=tuple(e for e in made.examples if e.kind == kind))
        for key in (lambda e: e.text, lambda e: e.scenes.tobytes()):
            for counts in labels_by(own, key):
                assert len(counts) == number
                assert len({*counts.values()}) == 1
    which = replace(made, examples=tuple(e for e in made.examples if e.kind == "which"))
    for counts in labels_by(which, lambda e: e.text):
        assert max(counts.values()) - min(counts.values()) <= 1


def test_shortcuts_are_at_chance_and_reading_is_perfect(pictures, every_task):
    chance = {"vqa": None, "ve": 1 / 3, "nlvr2": 1 / 2}
    for task in SCENES:
        splits = [every_task[task, split] for split in ("train", "test")]
        for found in measure(splits[0], splits, pictures):
            assert found.reader == 1
            if chance[task]:
                values = [v for name, v in vars(found).items() if name != "reader"]
                assert values == pytest.approx([chance[task]] * len(values))
            else:
                assert found.contents < found.prior
                assert found.cells < found.prior


def test_a_shortcut_is_found_where_there_is_one(pictures, every_task):
    made = every_task["nlvr2", "train"]
    by_text = tuple(replace(e, label=int("more" in e.text)) for e in made.examples)
    leaking = replace(made, examples=by_text)
    (found,) = measure(leaking, [leaking], pictures)
    assert min(found.text, found.words, found.text_limit) == 1
    covered = every_task["ve", "train"]
    by_scene = tuple(replace(e, label=int(e.scenes[0, 0] == -2)) for e in covered.examples)
    leaking = replace(covered, examples=by_scene)
    (found,) = measure(leaking, [leaking], pictures)
    assert found.contents > 0.99
    assert found.scene_limit == 1


def test_the_same_drawing_is_at_every_place(pictures, every_task):
    at = Counter()
    for example in every_task["nlvr2", "train"].examples:
        if example.kind == "same" and example.label:
            left, right = (pictures.concepts[scene].tolist() for scene in example.scenes)
            at.update((left.index(one), right.index(one)) for one in {*left} & {*right})
    assert len(at) == 16


def test_what_does_not_fit_is_an_error(built, pictures, tmp_path):
    with pytest.raises(OptionError, match="no task 'nlvr': did you mean 'nlvr2'"):
        drawings.tasks.load(built[0], "nlvr", "test")
    with pytest.raises(OptionError, match="no split 'trian': did you mean 'train'"):
        drawings.tasks.load(built[0], "vqa", "trian")
    with pytest.raises(OptionError, match="no split 'val'"):
        pictures.of_split("val")
    with pytest.raises(OptionError, match="holds no drawings"):
        drawings.tasks.load(tmp_path, "vqa", "test")
    with pytest.raises(OptionError, match="the cells of a scene are a square; got 5"):
        drawings.compose([0] * 5, pictures.images)
    with pytest.raises(OptionError, match="9 classes that share nothing are needed"):
        drawings.tasks.make(pictures, "vqa", "test", 100, 3)
    with pytest.raises(OptionError, match="grid is at least 2; got 1"):
        building.Sizes(grid=1)
    with pytest.raises(OptionError, match="a grid of 1 cells is too small for hypotheses"):
        entailment.make_hypotheses(pools.make_pool(pictures, "test", 1), 9, pools.random_of("", ""))


def test_scenes_are_composed_by_hand(pictures):
    number = int(pictures.of_split("train")[0])
    picture = drawings.compose([-1, number, -2, -1], pictures.images)
    assert picture.shape == (128, 128, 3)
    assert (picture[:64, :64] == 255).all()
    assert picture[96, 32].tolist() == [128] * 3
    drawn = pictures.images[number].astype(float)
    opacity = drawn[..., 3:] / 255
    expected = drawn[..., :3] * opacity + 255 * (1 - opacity)
    assert np.abs(picture[:64, 64:] - expected).max() <= 0.5


def test_of_one_drawing_for_two_concepts_the_first_stays(pictures):
    icons = pictures.sets == "noto"
    assert len({image.tobytes() for image in pictures.images[icons]}) == icons.sum()
    assert len(pictures.table) - 1 not in pictures.concepts[icons]
    assert len(pictures.table) - 1 in pictures.concepts[pictures.sets == "fluent-3d"]


MARKS = "".join(
    f"<!-- {name} -->\n\nold\n\n<!-- end {name} -->\n\n"
    for name in ("drawings", "tasks", "baselines")
)


def test_baselines_write_their_tables_into_a_document(built, tmp_path, monkeypatch, capsys):
    document = tmp_path / "page.md"
    document.write_text(f"before\n\n{MARKS}after\n", encoding="utf-8")
    drawing_packages.run_baselines(monkeypatch, built[0], "--write", document)
    text = document.read_text(encoding="utf-8")
    assert "old" not in text
    assert text.startswith("before\n\n<!-- drawings -->\n\n| set |")
    assert text.endswith("\n\n<!-- end baselines -->\n\nafter\n")
    printed = capsys.readouterr().out.split("\n\n")
    for table in printed:
        assert table.strip() in text
    assert "| nlvr2 | test | 50.0 | 50.0 |" in text
    assert "| vqa | test, where | 25.0 | 25.0 |" in text
    rows = [table.strip().splitlines() for table in printed]
    assert baselines.with_tables(text, dict(zip(baselines.TABLES, rows, strict=True))) == text


def test_the_page_shows_what_runs(built, capsys):
    page = (ROOT / "docs/how-to/pictures.md").read_text(encoding="utf-8")
    baselines.with_tables(page, dict.fromkeys(baselines.TABLES, ()))  # has its places
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"folder": built[0]}
    exec(block, names)
    assert re.fullmatch(r".+ -> (true|false)\n", capsys.readouterr().out)
    assert names["left"].shape == (128, 128, 3)
    for drawn in SETS:
        (line,) = re.findall(rf"^\| {drawn.name} \|.*$", page, re.MULTILINE)
        assert line.endswith(
            f"| {drawn.package.name} {drawn.package.version} | {drawn.package.licence} |"
        )
