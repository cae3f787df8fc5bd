"""What a loss of output projections is told of them, beside their weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import distillkit as dk
from distillkit import losses
from distillkit.errors import RecipeError

ON = ["head.input", "head.weight"]


def head(seed, softcap=None):
    torch.manual_seed(seed)
    values = {
        "head.input": torch.randn(2, 3, 4, requires_grad=True),
        "head.weight": torch.randn(5, 4, requires_grad=True),
        "head.bias": torch.randn(5),
    }
    return dk.Signals(values if softcap is None else {**values, "head.softcap": softcap})


def without_bias(student, weight, teacher, teacher_weight):
    return losses.linear_kl_divergence(student, weight, teacher, teacher_weight)


@pytest.mark.parametrize(
    "made", [lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_biases_reach_the_loss(made):
    student, teacher = head(0), head(1)
    term = made(dk.Term("linear_kl_divergence", on=ON))
    logits = [s["head.input"] @ s["head.weight"].mT + s["head.bias"] for s in (student, teacher)]
    torch.testing.assert_close(term(student, teacher), losses.kl_divergence(*logits).mean())


def test_a_loss_that_takes_no_bias_is_refused():
    term = dk.Term(without_bias, on=ON)
    with pytest.raises(
        RecipeError, match=r"student_bias = \(5,\), and the loss 'without_bias' takes"
    ):
        term(head(0), head(1))


def test_a_soft_cap_that_is_not_the_models_is_refused():
    term = dk.Term("linear_kl_divergence", on=ON, options={"student_softcap": 20.0})
    with pytest.raises(RecipeError, match=r"student_softcap = 30.0, .* is given 20.0"):
        term(head(0, torch.tensor(30.0)), head(1))
