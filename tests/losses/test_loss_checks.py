"""Every registered loss through every check that it chooses."""

from __future__ import annotations

import pytest
import torch

from distillkit import LossSpec, errors, losses, testing
from distillkit._needs import WHOLE_GRAPHS_OF_ATTENTIONS
from distillkit._plugins.registry import provided
from distillkit.testing import compiling
from distillkit.testing.strategies import Draw, made_from

OURS = [by["distillkit"] for by in provided(LossSpec).values() if "distillkit" in by]


@testing.parametrize_with_loss_checks(OURS)
def test_loss(loss, check):
    if check.name == "compiles" and not compiling.traces_whole(testing.Loss.of(loss)):
        pytest.skip(WHOLE_GRAPHS_OF_ATTENTIONS.unmet().removeprefix("; "))
    check(loss)


def test_an_old_torch_is_named_where_a_loss_is_not_traced_whole(monkeypatch):
    def breaks(student, teacher):
        torch._dynamo.graph_break()
        return losses.attention_kl(student, teacher)

    loss = testing.Loss.of(LossSpec("breaks", breaks, signature="attention", summary="Breaks."))
    call = made_from(
        loss.spec,
        Draw((2,), dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 2), "generic", torch.Generator()),
    )
    with pytest.raises(testing.CheckFailedError) as raised:
        compiling.compiles(loss, call)
    assert "torch 2.9" not in str(raised.value)
    monkeypatch.setattr(torch, "__version__", "2.8.0+cpu")
    with pytest.raises(
        testing.CheckFailedError,
        match=r"of a loss on attentions needs torch 2\.9, and this is 2\.8\.0",
    ):
        compiling.compiles(loss, call)


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
