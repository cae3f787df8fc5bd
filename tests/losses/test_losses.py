"""Every loss: against the oracle, its invariants as properties, its gradient, its errors."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from distillkit import errors, losses

FLOATS = st.floats(-20, 20, allow_subnormal=False)
TEMPERATURES = st.floats(0.1, 10)


@st.composite
def pairs(draw, elements=FLOATS, max_side=5):
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=max_side))
    return tuple(
        torch.from_numpy(draw(npst.arrays(np.float64, shape, elements=elements))) for _ in "st"
    )


@st.composite
def pairs_with_where(draw):
    student, teacher = draw(pairs())
    where = torch.from_numpy(draw(npst.arrays(bool, tuple(student.shape))))
    return student, teacher, where


class TestKLDivergence:
    @given(pairs_with_where(), TEMPERATURES)
    def test_against_the_oracle(self, drawn, temperature):
        student, teacher, where = drawn
        ours = losses.kl_divergence(student, teacher, temperature=temperature, where=where)
        expected = oracle.kl_divergence(student, teacher, temperature=temperature, where=where)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-11)

    @given(pairs(st.sampled_from([-math.inf, -1e4, 0.0, 1.0, 1e4])), TEMPERATURES)
    def test_minus_infinity_and_extremes(self, drawn, temperature):
        student, teacher = drawn
        ours = losses.kl_divergence(student, teacher, temperature=temperature)
        assert not ours.isnan().any()
        expected = oracle.kl_divergence(student, teacher, temperature=temperature)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-9)

    @given(pairs_with_where(), TEMPERATURES)
    def test_what_where_drops_reaches_nothing(self, drawn, temperature):
        student, teacher, where = drawn

        def value_and_gradient(fill):
            s, t = (torch.where(where, x, fill).requires_grad_() for x in (student, teacher))
            value = losses.kl_divergence(s, t, temperature=temperature, where=where)
            value.sum().backward()
            return value, s.grad, t.grad

        clean, dirty = value_and_gradient(0.0), value_and_gradient(math.nan)
        for one, other in zip(clean, dirty, strict=True):
            assert torch.equal(one, other)
        assert not clean[1][~where].any()

    @given(pairs(), TEMPERATURES, FLOATS)
    def test_adding_a_constant_changes_nothing(self, drawn, temperature, shift):
        student, teacher = drawn
        moved = losses.kl_divergence(student + shift, teacher, temperature=temperature)
        expected = losses.kl_divergence(student, teacher, temperature=temperature)
        torch.testing.assert_close(moved, expected, rtol=1e-7, atol=1e-9)

    @given(pairs(), TEMPERATURES)
    def test_identity_is_exactly_zero_and_nothing_is_negative(self, drawn, temperature):
        student, teacher = drawn
        teacher.requires_grad_()
        same = losses.kl_divergence(teacher, teacher.detach(), temperature=temperature)
        assert torch.equal(same, torch.zeros_like(same))
        same.sum().backward()
        assert teacher.grad.abs().max() < 1e-12 * temperature**2
        assert (losses.kl_divergence(student, teacher, temperature=temperature) > -1e-9).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, dtype):
        student, teacher = (
            (torch.randn(64, 100) * 5).to(dtype),
            (torch.randn(64, 100) * 5).to(dtype),
        )
        ours = losses.kl_divergence(student, teacher, temperature=2.0)
        assert ours.dtype == torch.float32
        exact = losses.kl_divergence(student.double(), teacher.double(), temperature=2.0)
        torch.testing.assert_close(ours, exact.float(), rtol=1e-5, atol=1e-6)

    @given(pairs(max_side=3), TEMPERATURES)
    def test_gradcheck_both_sides(self, drawn, temperature):
        inputs = [x.div(10).requires_grad_() for x in drawn]
        torch.autograd.gradcheck(
            lambda s, t: losses.kl_divergence(s, t, temperature=temperature), inputs, atol=1e-4
        )

    def test_edge_sizes(self):
        assert losses.kl_divergence(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)
        assert losses.kl_divergence(torch.randn(2, 1), torch.randn(2, 1)).tolist() == [0, 0]
        nothing = torch.zeros(2, 3, dtype=torch.bool)
        assert losses.kl_divergence(
            torch.randn(2, 3), torch.randn(2, 3), where=nothing
        ).tolist() == [0, 0]

    def test_a_row_without_classes_raises_no_anomaly(self):
        student = torch.randn(2, 3, requires_grad=True)
        where = torch.tensor([[True, True, True], [False, False, False]])
        with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
            losses.kl_divergence(student, torch.randn(2, 3), where=where).sum().backward()
        assert not student.grad[1].any()

    def test_temperature_squared_keeps_the_gradients_size(self):
        student, teacher = torch.randn(2, 8, 50, dtype=torch.float64) * 0.01
        cold, hot = (
            losses.kl_divergence(student, teacher, temperature=t).sum() for t in (1.0, 20.0)
        )
        assert 0.9 < (hot / cold).item() < 1.1


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

    @given(pairs(), st.sampled_from([1e-200, 1e-20, 1e20, 1e150]))
    def test_cosine_knows_no_scale(self, drawn, factor):
        student, teacher = drawn
        student = torch.where(student.abs() < 1e-3, 0, student)
        torch.testing.assert_close(
            losses.cosine_distance(student * factor, teacher),
            losses.cosine_distance(student, teacher),
        )

    def test_cosine_of_a_zero_vector_is_one_without_gradient(self):
        student = torch.zeros(2, 3, requires_grad=True)
        value = losses.cosine_distance(student, torch.randn(2, 3))
        value.sum().backward()
        assert value.tolist() == [1, 1]
        assert not student.grad.any()

    @pytest.mark.parametrize("loss", [losses.mse, losses.cosine_distance])
    def test_gradcheck(self, loss):
        student, teacher = (
            torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in "st"
        )
        torch.autograd.gradcheck(loss, (student, teacher))

    @pytest.mark.parametrize("loss", [losses.mse, losses.cosine_distance])
    def test_half_precision_and_empty(self, loss):
        student, teacher = torch.randn(2, 5, 8).bfloat16()
        exact = loss(student.double(), teacher.double()).float()
        torch.testing.assert_close(loss(student, teacher), exact, rtol=1e-5, atol=1e-6)
        assert loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


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

    @given(pairs_with_where(), st.integers(0, 3))
    def test_parts_with_a_normalizer_add_up(self, drawn, cut):
        values, _, mask = drawn
        whole, count = losses.masked_mean(values, mask), mask.sum()
        if not count:
            return
        parts = [
            losses.masked_mean(values[part], mask[part], normalizer=count)
            for part in (slice(None, cut), slice(cut, None))
        ]
        torch.testing.assert_close(sum(parts), whole, rtol=1e-9, atol=1e-12)

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
    @pytest.mark.parametrize("loss", [losses.kl_divergence, losses.mse, losses.cosine_distance])
    def test_nothing_broadcasts(self, loss):
        with pytest.raises(errors.ShapeError, match=r"student \(2, 3\) float32, teacher \(2, 4\)"):
            loss(torch.zeros(2, 3), torch.zeros(2, 4))
        with pytest.raises(errors.ShapeError, match=r"student \(2, 3\) float32, teacher \(1, 3\)"):
            loss(torch.zeros(2, 3), torch.zeros(1, 3))
        with pytest.raises(errors.ShapeError, match="consumes"):
            loss(torch.zeros(()), torch.zeros(()))

    def test_integers_are_no_logits(self):
        with pytest.raises(errors.ShapeError, match="teacher \\(2, 3\\) int64"):
            losses.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long))

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
    def test_a_temperature_is_positive(self, temperature):
        with pytest.raises(errors.OptionError, match="temperature must be greater than 0"):
            losses.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), temperature=temperature)

    @pytest.mark.parametrize(
        "where", [torch.ones(2, 3), torch.ones(4, dtype=torch.bool), torch.ones(1, 2, 3).bool()]
    )
    def test_where_is_boolean_and_fits(self, where):
        with pytest.raises(errors.ShapeError, match="where is boolean"):
            losses.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), where=where)
