"""Every registered loss through every check that it chooses."""

from __future__ import annotations

import pytest
import torch

from distillkit import LossSpec, errors, testing
from distillkit._plugins.registry import provided
from distillkit.testing.strategies import Draw, made_from

OURS = [by["distillkit"] for by in provided(LossSpec).values() if "distillkit" in by]


@testing.parametrize_with_loss_checks(OURS)
def test_loss(loss, check):
    check(loss)


@pytest.mark.parametrize("spec", OURS, ids=lambda spec: spec.name)
def test_a_call_refuses_what_the_annotation_excludes(spec):
    """The kit is content where a recipe refuses it; ours say so themselves, before any NaN."""
    loss = testing.Loss.of(spec)
    sizes = dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 3)
    call = made_from(spec, Draw((2,), sizes, "generic", torch.Generator().manual_seed(0)))
    for name, option in loss.options.items():
        for value in option.outside:
            with pytest.raises(errors.OptionError, match=name):
                loss(call, **{name: value})
