"""Tests as on other machines: which order they come in, and what is written down of a run."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from types import SimpleNamespace

from tools import machine_conditions, shuffled

RUN = {
    "machine": "turkish", "tests": "tests/x", "without": [], "python": "3.11", "torch": "2",
    "passed": 3, "failed": 1, "code": 1,
}  # fmt: skip


def items(*names):
    return [SimpleNamespace(path=Path(name), at=at) for name in names for at in range(6)]


def test_files_and_their_tests_are_shuffled_and_blocks_of_a_document_are_not():
    given = items("a.py", "b.md", "c.py")
    orders = [shuffled.shuffled(given, seed) for seed in range(8)]
    for order in orders:
        assert sorted(map(id, order)) == sorted(map(id, given))
        files = [one.path.name for one in order]
        assert sum(one != other for one, other in itertools.pairwise(files)) == 2
        assert [one.at for one in order if one.path.suffix == ".md"] == list(range(6))
    assert len({tuple((one.path.name, one.at) for one in order) for order in orders}) == 8
    again = shuffled.shuffled(list(reversed(given)), 3)
    assert [one.path for one in again] == [one.path for one in orders[3]], "by the names of files"


def test_a_condition_that_is_left_out_sets_nothing(tmp_path):
    machine = machine_conditions.MACHINES["turkish"]

    def variables(*without):
        return machine_conditions.environment_of(machine, tmp_path, tmp_path, set(without))

    assert variables()["LC_ALL"] == "tr_TR.UTF-8"
    assert variables()["HOME"] == machine_conditions.NO_HOME
    assert variables("home").get("HOME") == os.environ.get("HOME")
    assert variables("order")["DISTILLKIT_ORDER"] == "0"


def test_the_page_shows_the_last_run_of_each_machine():
    later = {**RUN, "passed": 4, "failed": 0, "code": 0}
    shown = machine_conditions.table([RUN, {**RUN, "without": ["zone"]}, later])
    assert shown.count("\n") == 2
    assert shown.endswith("| `tests/x` | 4 pass |")
    assert machine_conditions.table([RUN]).endswith("| 3 pass, 1 fail |")
    page = machine_conditions.PAGE.read_text(encoding="utf-8")
    assert machine_conditions.written(page, machine_conditions.read_runs()) == page
