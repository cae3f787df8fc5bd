"""Documents say what code and tests say: tables, outputs, and every loss by its name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from distillkit import LossSpec
from distillkit._plugins.registry import provided
from tools import document_tables

ROOT = Path(__file__).parents[1]
PROVE = ROOT / "docs/how-to/prove-your-loss.md"


@pytest.mark.parametrize("name", document_tables.DOCUMENTS)
def test_tables_are_those_of_the_data(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- begin" in text
    assert document_tables.written(text) == text, "run make documents"


def test_the_example_prints_what_the_document_shows():
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples/invent_a_loss.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = PROVE.read_text(encoding="utf-8")
    shown = re.search(r"invent_a_loss.py -->\n\n```text\n(.*?)```", text, re.DOTALL)[1]
    assert shown == printed


def test_what_was_compared_with_other_libraries_is_a_loss():
    text = (ROOT / "docs/reference/losses-oracles.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert "kl_divergence" in listed
    assert set(listed) <= set(provided(LossSpec))
