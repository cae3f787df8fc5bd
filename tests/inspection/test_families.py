"""Files that ``inspect`` writes of real architectures, held to the kit and to files by hand."""

from __future__ import annotations

import pytest

import distillkit as dk
from distillkit._capture.scope import Scope
from distillkit._inspect.inspection import inspect_model
from tests.support import families_to_inspect, zoo
from tests.support.families_by_file import FILES
from tests.support.layouts_told import told


@pytest.mark.parametrize("name", families_to_inspect.NAMES)
def test_the_file_passes_or_says_which_line_is_missing(name):
    inspection = inspect_model(*families_to_inspect.build(name))
    assert families_to_inspect.outcome(inspection) == families_to_inspect.expected(name)
    assert inspection.passed == (name not in families_to_inspect.INCOMPLETE)
    if inspection.passed:
        assert "stream_" not in str(inspection)


def test_most_files_pass_unedited():
    passing = set(families_to_inspect.NAMES) - set(families_to_inspect.INCOMPLETE)
    assert len(passing) >= 46


OF_ONE_IMAGE = set(FILES) - {"got_ocr2", "ovis2"}  # whose zoo batch or config says otherwise


@pytest.mark.parametrize("name", sorted(OF_ONE_IMAGE))
def test_the_file_says_what_one_by_hand_says(name):
    model, batch = zoo.build(name)
    file = inspect_model(model, batch).file.tables
    by_hand = FILES[name]
    modules = Scope(model, ()).names.matching
    assert {s: modules(one) for s, one in file["streams"].items()} == {
        s: modules(one) for s, one in by_hand["streams"].items()
    }
    ours = told(dk.DeclarativeAdapter(**file), model, batch)
    theirs = told(dk.DeclarativeAdapter(**by_hand), model, batch)
    assert ours == theirs
