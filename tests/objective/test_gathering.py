"""``gather`` of a term in one process; tests/distributed/test_gather_terms.py has two."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

import distillkit as dk
from distillkit import errors
from distillkit._objective.gathering import check_gather
from distillkit._plugins.registry import provided
from distillkit._plugins.specs import LossSpec

BETWEEN_EXAMPLES = {
    "cka_distance", "contrastive_relational", "info_nce", "interactive_contrastive",
    "intra_class_pearson_distance", "pkt", "relation_cosine_distance", "rkd_angle", "rkd_distance",
    "similarity_preserving",
}  # fmt: skip


def signals(*, learns=False, shape=(4, 3)):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(int(learns)))
    return dk.Signals({"x": drawn.requires_grad_(learns), "y": drawn})


def test_which_losses_compare_examples():
    for name, by in provided(LossSpec).items():
        if "distillkit" not in by:
            continue
        try:
            check_gather("t", name, by["distillkit"].signature)
        except errors.RecipeError:
            assert name not in BETWEEN_EXAMPLES
        else:
            assert name in BETWEEN_EXAMPLES


@pytest.mark.parametrize("loss", ["kl_divergence", "mse", "attention_kl", "linear_kl_divergence"])
def test_a_loss_of_single_examples_has_no_use_for_it(loss):
    with pytest.raises(errors.RecipeError, match=f"gather = true does nothing for '{loss}'"):
        dk.Term(loss, on="x", gather=True)
    recipe = dk.Recipe(name="r", terms=[{"loss": "rkd_distance", "on": "x", "gather": True}])
    assert recipe.build().each()[0].gather
    with pytest.raises(ValueError, match="does nothing"):
        dk.Recipe(name="r", terms=[{"loss": loss, "on": "x", "gather": True}])


def test_tokens_of_each_example_are_not_examples():
    term = dk.Term("rkd_distance", on="x", gather=True)
    both = signals(learns=True, shape=(2, 4, 3)), signals(shape=(2, 4, 3))
    with pytest.raises(errors.RecipeError, match=r"signal \(2, 4, 3\).*tokens of each example"):
        term(*both)


def test_attentions_are_not_joined():
    def loss(a, b):
        return (a.scores() - b.scores()).square().sum(-1)

    attention = dk.Attention(*torch.randn(2, 1, 1, 2, 3, requires_grad=True))
    both = dk.Signals({"a": [attention]})
    with pytest.raises(errors.RecipeError, match="this signal is an attention"):
        dk.Term(loss, on="a", gather=True)(both, both)


def test_a_loss_that_asks_for_tokens_and_the_task_do_not_gather():
    def loss(a, b, *, student_tokens, teacher_tokens):
        return (a - b).square().mean(-1)

    with pytest.raises(errors.RecipeError, match="asks which tokens they are"):
        dk.Term(loss, on="x", gather=True)
    with pytest.raises(errors.RecipeError, match="`gather`"):
        dk.Term("task", gather=True)
    with pytest.raises(ValueError, match=r"terms\.0\.gather"):
        dk.Recipe(name="r", terms=[{"loss": "rkd_distance", "on": "x", "gather": "maybe"}])


@pytest.mark.parametrize("loss", ["info_nce", "rkd_distance", "cka_distance"])
def test_in_one_process_it_changes_nothing(loss):
    found = []
    for gather in (False, True):
        student = signals(learns=True)
        objective = dk.Objective([dk.Term(loss, on="x", gather=gather)])
        result = objective(student, signals(), normalizer=8)
        result.loss.backward()
        found.append((result.loss, result.counts, student["x"].grad))
    assert_close(found[1], found[0], rtol=0, atol=0)


def test_copies_gather():
    term = dk.Term("info_nce", on="x", gather=True)
    assert copy.deepcopy(term).gather
    assert pickle.loads(pickle.dumps(term)).gather
