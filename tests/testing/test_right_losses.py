"""The kit raises no false alarm: right losses of every make pass every check."""

from __future__ import annotations

import pytest

from distillkit import testing
from tests.support.right_losses import RIGHT


@pytest.mark.parametrize("spec", RIGHT, ids=lambda spec: spec.name)
def test_passes(spec):
    failed = [str(result) for result in testing.check_loss(spec) if not result.passed]
    assert failed == []
