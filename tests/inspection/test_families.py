"""Files that ``inspect`` writes of real architectures, held to the kit and to files by hand."""

from __future__ import annotations

import pytest
import torch

import distillkit as dk
from distillkit._capture.scope import Scope
from distillkit._inspect.inspection import inspect_model
from tests.support import families_to_inspect, zoo
from tests.support.families_by_file import FILES


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


def _told(adapter, model, batch):
    """What a layout says: of each stream and modality the positions, special tokens and grid."""
    layout = dk.Backbone(model, adapter).trace(batch).layout
    found = {}
    for stream, tokens in layout.items():
        for modality, one in tokens.items():
            axis = one.grid.tolist() if isinstance(one.grid, torch.Tensor) else one.grid
            special = one.special
            if isinstance(special, torch.Tensor):
                special = tuple(special.any(0).nonzero()[:, 0].tolist())
            place = one.positions
            if isinstance(place, torch.Tensor):
                place = place.nonzero().tolist()
            found[stream, modality] = (place, special, axis)
        found[stream, "valid"] = None if tokens.valid is None else tokens.valid.tolist()
    return found


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
    ours = _told(dk.DeclarativeAdapter(**file), model, batch)
    theirs = _told(dk.DeclarativeAdapter(**by_hand), model, batch)
    assert ours == theirs
