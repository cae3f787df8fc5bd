"""Documents say what code and tests say: tables, outputs, and every loss by its name."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import document_tables
import pytest

from distillkit import LossSpec
from distillkit._plugins.registry import provided

ROOT = Path(__file__).parents[1]
PROVE = ROOT / "docs/how-to/prove-your-loss.md"


@pytest.mark.parametrize("name", document_tables.DOCUMENTS)
def test_tables_are_those_of_the_data(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- begin" in text
    assert document_tables.written(text) == text, "run python tests/document_tables.py"


def test_the_example_prints_what_the_document_shows():
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples/invent_a_loss.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = PROVE.read_text(encoding="utf-8")
    shown = re.search(r"invent_a_loss.py -->\n\n```text\n(.*?)```", text, re.DOTALL)[1]
    assert shown == printed


@pytest.mark.parametrize("page", ["how-to/choose-a-loss.md", "reference/losses-oracles.md"])
def test_every_loss_is_in_the_table(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    ours = [name for name, by in provided(LossSpec).items() if "distillkit" in by]
    assert sorted(set(listed)) == sorted(ours)


def test_costs_at_scale_are_counted_by_the_script():
    scale = module_at(ROOT / "tools/scale_table.py")
    text = (ROOT / "docs/explanation/scale.md").read_text(encoding="utf-8")
    assert text.count("<!-- begin") == len(scale.tables())
    assert scale.written(text) == text, "run python tools/scale_table.py docs/explanation/scale.md"
    pair = scale.Pair(teacher=7e9, student=2e9)
    assert scale.memory(pair, 8)["student under FSDP2"] == 2e9 * 16 / 8
    assert scale.traffic(pair, 2)["student under DDP: gradients, all-reduce"] == 2e9 * 4


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOOPS = ROOT / "docs/how-to/loops.md"


def test_every_line_of_a_loop_is_one_of_an_example_that_runs():
    text = LOOPS.read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- from (\S+) -->\n\n```py\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```py\n") > 5
    for name, shown in blocks:
        lines = {
            line.strip().partition("  #")[0]
            for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        }
        missing = [x for x in shown.splitlines() if x.strip().partition("  #")[0] not in lines]
        assert not missing, name


def test_every_test_that_the_table_of_loops_names_exists():
    named = re.findall(r"\[\d+\]: `(\S+?)(?:::(\w+))?`", LOOPS.read_text(encoding="utf-8"))
    assert len(named) > 10
    for path, function in named:
        if path == "tests/loops/test_trainer.py" and not (ROOT / path).exists():
            continue
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in text, (path, function)
