"""Every registered loss through every check that it chooses."""

from __future__ import annotations

from distillkit import LossSpec, testing
from distillkit._plugins.registry import provided

OURS = [by["distillkit"] for by in provided(LossSpec).values() if "distillkit" in by]


@testing.parametrize_with_loss_checks(OURS)
def test_loss(loss, check):
    check(loss)
