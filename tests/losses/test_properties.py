"""Every loss: against the oracle, its invariants as properties, its gradient, its errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from distillkit import errors, losses
from tests.support import loss_oracle as oracle

FLOATS = st.floats(-20, 20, allow_subnormal=False)
TEMPERATURES = st.floats(0.1, 10)


@st.composite
def pairs(draw, elements=FLOATS, max_side=5, classes=1):
    lead = draw(npst.array_shapes(min_dims=0, max_dims=2, min_side=1, max_side=max_side))
    shape = (*lead, draw(st.integers(classes, max_side)))
    return tuple(
        torch.from_numpy(draw(npst.arrays(np.float64, shape, elements=elements))) for _ in "st"
    )


@st.composite
def pairs_with_where(draw, classes=1):
    student, teacher = draw(pairs(classes=classes))
    where = torch.from_numpy(draw(npst.arrays(bool, tuple(student.shape))))
    return student, teacher, where


class TestKLDivergence:
    @given(pairs_with_where(classes=2), TEMPERATURES)
    def test_against_the_oracle(self, drawn, temperature):
        student, teacher, where = drawn
        ours = losses.kl_divergence(student, teacher, temperature=temperature, where=where)
        expected = oracle.kl_divergence(student, teacher, temperature=temperature, where=where)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-11)

    @given(pairs(st.sampled_from([-math.inf, -1e4, 0.0, 1.0, 1e4]), classes=2), TEMPERATURES)
    def test_minus_infinity_and_extremes(self, drawn, temperature):
        student, teacher = drawn
        ours = losses.kl_divergence(student, teacher, temperature=temperature)
        assert not ours.isnan().any()
        expected = oracle.kl_divergence(student, teacher, temperature=temperature)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-9)

    def test_a_row_without_classes_raises_no_anomaly(self):
        student = torch.randn(2, 3, requires_grad=True)
        where = torch.tensor([[True, True, True], [False, False, False]])
        with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
            losses.kl_divergence(student, torch.randn(2, 3), where=where).sum().backward()
        assert not student.grad[1].any()


class TestFeatures:
    @given(pairs())
    def test_mse_against_numpy(self, drawn):
        student, teacher = drawn
        expected = np.mean((student.numpy() - teacher.numpy()) ** 2, -1)
        np.testing.assert_allclose(losses.mse(student, teacher).numpy(), expected, rtol=1e-12)
        assert not losses.mse(student, student).any()
        torch.testing.assert_close(losses.mse(student, teacher), losses.mse(teacher, student))

    @given(pairs(st.one_of(st.just(0.0), FLOATS)))
    def test_cosine_against_the_oracle(self, drawn):
        student, teacher = (torch.where(x.abs() < 1e-3, 0, x) for x in drawn)
        ours = losses.cosine_distance(student, teacher)
        np.testing.assert_allclose(
            ours.numpy(), oracle.cosine_distance(student.numpy(), teacher.numpy()), atol=1e-12
        )
        assert ((ours >= 0) & (ours <= 2)).all()
        nonzero = student.abs().sum(-1) > 0
        eps = torch.finfo(torch.float64).eps
        assert (losses.cosine_distance(student, student)[nonzero] <= 8 * eps).all()

    def test_cosine_of_a_zero_vector_is_one_without_gradient(self):
        student = torch.zeros(2, 3, requires_grad=True)
        value = losses.cosine_distance(student, torch.randn(2, 3))
        value.sum().backward()
        assert value.tolist() == [1, 1]
        assert not student.grad.any()


class TestMaskedMean:
    @given(pairs_with_where())
    def test_against_the_oracle(self, drawn):
        values, _, mask = drawn
        dirty = torch.where(mask, values, torch.nan).requires_grad_()
        mean = losses.masked_mean(dirty, mask)
        np.testing.assert_allclose(
            mean.item(), oracle.masked_mean(values.numpy(), mask.numpy()), rtol=1e-9, atol=1e-12
        )
        mean.backward()
        expected = mask.double() / max(1, int(mask.sum()))
        torch.testing.assert_close(dirty.grad, expected)

    @given(pairs())
    def test_a_floating_mask_holds_weights(self, drawn):
        values, weights = drawn
        weights = weights.abs()
        np.testing.assert_allclose(
            losses.masked_mean(values, weights).item(),
            oracle.masked_mean(values.numpy(), weights.numpy()), rtol=1e-6, atol=1e-9,
        )  # fmt: skip

    def test_nothing_kept_is_zero_with_a_zero_gradient(self):
        values = torch.full((2, 3), torch.nan, requires_grad=True)
        mean = losses.masked_mean(values, torch.zeros(2, 3, dtype=torch.bool))
        mean.backward()
        assert mean.item() == 0
        assert not values.grad.any()

    def test_a_mask_that_does_not_broadcast(self):
        with pytest.raises(errors.ShapeError, match=r"\(2,\).*\(2, 3\).*mask\[:, None\]"):
            losses.masked_mean(torch.zeros(2, 3), torch.ones(2, dtype=torch.bool))


class TestBadInput:
    @pytest.mark.parametrize(
        "where", [torch.ones(2, 3), torch.ones(4, dtype=torch.bool), torch.ones(1, 2, 3).bool()]
    )
    def test_where_is_boolean_and_fits(self, where):
        with pytest.raises(errors.ShapeError, match="where is boolean"):
            losses.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), where=where)


def test_gather_without_processes_is_nothing():
    x = torch.randn(3, 4)
    assert losses.gather(x) is x
    with pytest.raises(errors.ShapeError, match="first axis"):
        losses.gather(torch.tensor(1.0))


@pytest.mark.parametrize(("name", "most"), [("mse", 2), ("cosine_distance", 2)])
def test_feature_losses_keep_no_more_of_their_inputs_size_than_they_need(name, most):
    n, d = 64, 32
    student, teacher = (torch.randn(n, d, requires_grad=True) for _ in "st")
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value = getattr(losses, name)(student, teacher)
    assert sum(size >= n * d for size in kept.values()) <= most
    value.sum().backward()
