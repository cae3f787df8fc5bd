"""The table of versions says what runs noted, and what runs note is what happened."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tools import versions

TESTS = """
import pytest

def test_passes():
    pass

def test_fails():
    assert False

@pytest.mark.skip(reason="why not")
def test_is_skipped():
    pass

@pytest.fixture
def broken():
    raise RuntimeError

def test_is_an_error(broken):
    pass
"""


def test_the_page_is_that_of_the_noted_runs():
    runs = versions.read(versions.LINES)
    assert versions.PAGE.read_text(encoding="utf-8") == versions.page(runs), (
        "run python -m tools.versions write"
    )


def test_a_run_is_noted_once_with_its_outcomes(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    lines = tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "tools.versions", "run", "lowest", "--lines", str(lines), "--"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for _ in range(2):
        done = subprocess.run(
            [*command, "-q", "-c", str(tmp_path / "pytest.ini"), str(tmp_path)],
            capture_output=True, text=True, cwd=versions.ROOT, env=environment,
        )  # fmt: skip
        assert done.returncode == 1, done.stdout + done.stderr
    (run,) = versions.read(lines)
    assert run.counts == {"passed": 1, "failed": 1, "skipped": 1, "errors": 1}
    assert [test.rpartition("::")[2] for test in run.failed] == ["test_fails", "test_is_an_error"]
    assert run.packages["pytest"] == pytest.__version__
    page = versions.page([run])
    assert "| 1, lowest |" in page
    assert "| 1 | 1 | 1 | 1 |" in page
    assert "::test_fails`" in page


def test_a_broken_line_is_named(tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text("{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 1 is no run"):
        versions.read(lines)
