"""Drawings and tasks from packages in their real formats, without a network."""

from __future__ import annotations

import os
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

import drawings
from drawings import building, entailment, pools, questions, statements
from drawings.files import whole_file, whole_folder
from drawings.packages import fetch
from drawings.rendering import match
from drawings.shortcuts import Shortcuts, best_per_key, measure, share_right
from drawings.sources import ARTISTS, SETS, Package
from drawings.tasks import SPLITS, TASKS
from drawings.words import WORDS, classes_of

from distillkit.errors import OptionError
from tests.support import drawing_packages

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples/pictures"
SIZES = building.Sizes(train=600, test=200)
FLAGS = ("--train", str(SIZES.train), "--test", str(SIZES.test))
SCENES = TASKS[:3]


def start(script, *arguments, **environment):
    command = [sys.executable, str(PICTURES / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def run(script, *arguments, **environment):
    with start(script, *arguments, **environment) as process:
        out, said = process.communicate(timeout=300)
    return process.returncode, out, said


def files(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


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
    again = files(tmp_path)
    assert not [name for name in again if "unfinished" in name]
    assert again == files(built[0])


def test_other_sizes_make_the_tasks_anew_and_nothing_else(tmp_path, built):
    drawing_packages.write(tmp_path / "packages")
    said: list[str] = []
    building.build(tmp_path, SIZES, said.append)
    said.clear()
    building.build(tmp_path, replace(SIZES, test=100, grid=1 + SIZES.grid - 1), said.append)
    assert said == [f"{task} {split}" for task in TASKS for split in SPLITS]
    assert len(drawings.tasks.load(tmp_path, "nlvr2", "test")) == 100
