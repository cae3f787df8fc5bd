"""The kit itself: every planted fault is caught by the check that is there for it."""

from __future__ import annotations

import pytest

from distillkit import testing
from tests.support.planted_faults import FAULTS

CHECKS = {check.name: check for check in testing.CHECKS}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_caught(fault):
    check = CHECKS[fault.caught_by]
    assert check in testing.checks_for(fault.spec)
    result = check.run(testing.Loss.of(fault.spec))
    assert not result.passed, f"{fault.what} passes {check.name}"
    assert result.seen
    assert result.failing


def test_every_check_has_a_fault_to_catch():
    assert {fault.caught_by for fault in FAULTS} == set(CHECKS)
