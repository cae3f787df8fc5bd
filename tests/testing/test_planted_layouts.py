"""The adapter kit against layouts that lie, one at a time, and against many that do not."""

from __future__ import annotations

import pytest

from distillkit import errors, testing
from distillkit.testing.adapter_checks import CHECKS
from distillkit.testing.verdicts import Unverified
from tests.support.layout_models import RIGHT, TOWERS
from tests.support.planted_layouts import CAUGHT_BY, planted, verdict

LIES = list(planted())


@pytest.mark.parametrize("lie", LIES, ids=[f"{x.kind}-{x.model}-{x.tower}" for x in LIES])
def test_a_planted_layout_is_caught_or_said_to_be_unverified(lie):
    """By the check that the documents name, with a message and no error of torch."""
    case = testing.AdapterCase(lie.factory)
    unverified = verdict(lie.kind, lie.tower) == "unverified"
    expected = Unverified if unverified else (AssertionError, errors.DistillKitError)
    with pytest.raises(expected):
        CHECKS[CAUGHT_BY[lie.kind]](case)


def test_every_kind_is_planted():
    assert {lie.kind for lie in LIES} == set(CAUGHT_BY)
    assert len(LIES) > 200
    assert set(CAUGHT_BY.values()) < set(CHECKS)


@pytest.mark.parametrize("name", RIGHT)
def test_a_true_layout_fails_no_check(name):
    results = testing.check_adapter(RIGHT[name])
    assert [str(one) for one in results if one.failed] == []
    unverified = [one.name for one in results if one.unverified]
    assert unverified == (["a_patch_moves_its_own_cell"] if "mixing" in name else [])


def test_towers_of_every_kind_are_tried():
    assert set(TOWERS) == {lie.tower for lie in LIES}
    assert len(RIGHT) == 40
