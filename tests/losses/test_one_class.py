"""One class has no distribution: every loss over classes says so; one key of attention is fine."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from distillkit import Attention, LossSpec, errors, losses
from distillkit._plugins.registry import provided
from distillkit._plugins.specs import resolve
from distillkit.testing import Loss

SPECS = [by["distillkit"] for by in provided(LossSpec).values() if "distillkit" in by]
WITH_CLASSES = {spec.name: spec for spec in SPECS if "v" in re.findall(r"\w+", spec.signature)}
ONE_IS_ENOUGH = {"soft_binary_cross_entropy"}  # each class is a distribution of its own
OVER_CLASSES = sorted(WITH_CLASSES.keys() - ONE_IS_ENOUGH)

ONE = torch.zeros(2, 1)
LABELS = torch.zeros(2, dtype=torch.long)
STORED = torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.long)
ARGUMENTS = {
    "(n,d),(v,d),(n,e),(v,e)->(n)": (ONE, ONE[:1], ONE, ONE[:1]),
    "(v),(k),(k)->()": (ONE, *STORED),
}


def call_with_one_class(spec):
    function = resolve(spec.function)
    labelled = "labels" in inspect.signature(function).parameters
    keywords = {"labels": LABELS} if labelled else {}
    return function(*ARGUMENTS.get(spec.signature, (ONE, ONE)), **keywords)


@pytest.mark.parametrize("name", OVER_CLASSES)
def test_one_class_is_an_error_that_names_what_fits(name):
    with pytest.raises(
        errors.ShapeError,
        match=r"one class has no distribution.*soft_binary_cross_entropy.*\(b, candidates\)",
    ):
        call_with_one_class(WITH_CLASSES[name])


def test_the_kit_knows_them_by_themselves():
    refusing = {spec.name for spec in SPECS if "v" in Loss.of(spec).least}
    assert refusing == set(OVER_CLASSES)
    assert {"kl_divergence", "nkd", "top_k_kl_divergence", "linear_kl_divergence"} <= refusing


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (0, 2)])
def test_either_side_of_unrelated_vocabularies(sizes):
    with pytest.raises(errors.ShapeError, match="one class has no distribution"):
        losses.universal_logit_distance(*(torch.zeros(2, v) for v in sizes))


def test_a_teacher_of_whom_nothing_was_stored():
    with pytest.raises(errors.ShapeError, match="1 <= k <= v"):
        losses.top_k_kl_divergence(torch.zeros(2, 3), torch.zeros(2, 0), LABELS[:, None][:, :0])


def test_what_one_class_and_one_key_are_legal_for():
    assert losses.soft_binary_cross_entropy(ONE, ONE + 1).shape == (2,)
    assert losses.mse(ONE, ONE + 1).tolist() == [1, 1]
    stored = torch.tensor([[0.5]]).log()
    assert losses.top_k_kl_divergence(torch.zeros(1, 2), stored, LABELS[:1, None]).tolist() == [0]
    scores = torch.randn(1, 1, 2, 1)
    for loss in (losses.attention_kl, losses.attention_jsd, losses.attention_cosine_distance):
        value = loss(Attention.from_scores(scores), Attention.from_scores(-scores))
        assert value.tolist() == [[[0, 0]]]
    where = torch.tensor([[True, False, False]])
    assert losses.kl_divergence(torch.randn(1, 3), torch.randn(1, 3), where=where).tolist() == [0]
