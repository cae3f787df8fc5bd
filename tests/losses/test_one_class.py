"""One class has no distribution: every loss over classes says so; one key of attention is fine."""

from __future__ import annotations

import pytest
import torch

from distillkit import Attention, LossSpec, errors, losses
from distillkit._plugins.registry import provided
from distillkit.testing import Loss

OVER_CLASSES = {
    "kl_divergence", "reverse_kl_divergence", "jensen_shannon_divergence", "total_variation",
    "soft_cross_entropy", "decoupled_kl_divergence", "nkd", "pearson_distance",
    "intra_class_pearson_distance", "universal_logit_distance", "top_k_kl_divergence",
    "top_k_jensen_shannon_divergence", "linear_kl_divergence", "linear_jensen_shannon_divergence",
}  # fmt: skip

ONE = torch.zeros(2, 1)
LABELS = torch.zeros(2, dtype=torch.long)
CALLS = {
    "decoupled_kl_divergence": lambda f: f(ONE, ONE, labels=LABELS),
    "nkd": lambda f: f(ONE, ONE, labels=LABELS),
    "top_k_kl_divergence": lambda f: f(ONE, ONE, LABELS[:, None]),
    "top_k_jensen_shannon_divergence": lambda f: f(ONE, ONE, LABELS[:, None]),
    "linear_kl_divergence": lambda f: f(ONE, ONE[:1], ONE, ONE[:1]),
    "linear_jensen_shannon_divergence": lambda f: f(ONE, ONE[:1], ONE, ONE[:1]),
}


@pytest.mark.parametrize("name", sorted(OVER_CLASSES))
def test_one_class_is_an_error_that_names_what_fits(name):
    call = CALLS.get(name, lambda f: f(ONE, ONE))
    with pytest.raises(
        errors.ShapeError,
        match=r"one class has no distribution.*soft_binary_cross_entropy.*\(b, candidates\)",
    ):
        call(getattr(losses, name))


def test_the_kit_knows_them_by_themselves():
    """A loss over classes that is registered later must be in the list above, or allow one."""
    specs = [by["distillkit"] for by in provided(LossSpec).values() if "distillkit" in by]
    refusing = {spec.name for spec in specs if "v" in Loss.of(spec).least}
    assert refusing == OVER_CLASSES
    with_classes = {spec.name for spec in specs if "v" in spec.signature}
    assert with_classes - refusing == {"soft_binary_cross_entropy"}


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
    for loss in (losses.attention_kl, losses.attention_jsd, losses.attention_cosine):
        value = loss(Attention.from_scores(scores), Attention.from_scores(-scores))
        assert value.tolist() == [[[0, 0]]]
    where = torch.tensor([[True, False, False]])
    assert losses.kl_divergence(torch.randn(1, 3), torch.randn(1, 3), where=where).tolist() == [0]
