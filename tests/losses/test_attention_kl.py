"""attention_kl: against the oracle, under padding, with unequal heads, and its errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distillkit import Attention, errors, losses
from tests.support import loss_oracle as oracle


@dataclass
class Case:
    """Two attentions over the same tokens, in float64, with what keeps their entries."""

    student: Attention
    teacher: Attention
    keep: Tensor  # (b, 1, q, k)
    rows: Tensor  # (b, q)


@st.composite
def cases(draw):
    b, g, r, q, k, d = (draw(st.integers(1, n)) for n in (3, 2, 2, 4, 4, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * draw(
            st.sampled_from([0.1, 1, 30])
        )

    def boolean(*shape):
        return torch.rand(shape, generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.1]))

    keep, rows = boolean(b, 1, q, k), boolean(b, q)
    make = {"mask": keep, "bias": normal(1, g * r, q, k) if draw(st.booleans()) else None}
    student = Attention(normal(b, g * r, q, d), normal(b, g, k, d), scale=0.7, rows=rows, **make)
    teacher = Attention(normal(b, g * r, q, d + 1), normal(b, g * r, k, d + 1), **make)
    return Case(student, teacher, keep, rows)


def plain(attention):
    """The same for the oracle."""
    fields = {
        name: getattr(attention, name) for name in ("scale", "mask", "bias", "causal", "rows")
    }
    return {"query": attention.query, "key": attention.key, **fields}


@given(cases(), st.floats(0.2, 5), st.sampled_from([None, "mean"]))
def test_against_the_oracle(case, temperature, heads):
    ours = losses.attention_kl(case.student, case.teacher, temperature=temperature, heads=heads)
    expected, expected_counted = oracle.attention_kl(
        plain(case.student), plain(case.teacher), temperature=temperature, heads=heads
    )
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-8, atol=1e-10)
    if heads is None:
        counted = losses.shared_rows(case.student, case.teacher)
        assert torch.equal(counted, torch.from_numpy(expected_counted))


@given(cases())
def test_probabilities_against_the_oracle(case):
    given = plain(case.student)
    del given["rows"]
    expected = oracle.attention_probabilities(given.pop("query"), given.pop("key"), **given)
    ours = case.student.with_rows(None).probabilities()
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12)


@given(cases(), st.integers(0, 2**16))
def test_blocks_against_the_oracle(case, seed):
    """``between`` with positions that differ between examples, packed."""
    b, _, q, k = case.student.shape
    generator = torch.Generator().manual_seed(seed)
    rows, keys = (torch.rand(b, n, generator=generator) < 0.6 for n in (q, k))
    block = case.student.with_rows(None).between(rows, keys)
    positions = [[row.nonzero()[:, 0].tolist() for row in side] for side in (rows, keys)]
    expected = oracle.between(plain(case.student), *positions)
    for ours, one, r, c in zip(block.probabilities(), expected, *positions, strict=True):
        np.testing.assert_allclose(ours[:, : len(r), : len(c)].numpy(), one, rtol=1e-9, atol=1e-12)
        assert not ours[:, len(r) :].any()
        assert not ours[:, :, len(c) :].any()


@given(cases())
def test_crossings_against_the_oracle(case):
    b, h, _, d = case.student.query.shape
    key_of = Attention(
        torch.randn(b, h, 3, d, dtype=torch.float64), torch.randn(b, h, 3, d, dtype=torch.float64)
    )
    keys = torch.rand(b, 3) < 0.6
    ours = Attention.cross(case.student, key_of, rows=case.rows, keys=keys)
    if case.student.key.shape[1] != h:  # the oracle wants equal heads of both towers' own
        return
    expected = oracle.cross(plain(case.student), plain(key_of), case.rows, keys)
    np.testing.assert_allclose(ours.probabilities().numpy(), expected, rtol=1e-9, atol=1e-12)


@given(cases())
def test_identity_is_exactly_zero(case):
    assert not losses.attention_kl(case.student, case.student).any()


@given(
    cases(), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.0, 1e4, math.nan, math.inf])
)
def test_padding_changes_neither_value_nor_gradient(case, more_rows, more_keys, rubbish):
    """Tokens appended and masked out, whatever they hold, are as if they were not there."""

    def value_and_gradient(rows_padding, keys_padding):
        leaves, sides = [], []
        for side in (case.student, case.teacher):
            query, key = side.query.clone().requires_grad_(), side.key.clone().requires_grad_()
            leaves += [query, key]
            grown_query = torch.nn.functional.pad(query, (0, 0, 0, rows_padding), value=rubbish)
            grown_key = torch.nn.functional.pad(key, (0, 0, 0, keys_padding), value=rubbish)
            mask = torch.nn.functional.pad(
                case.keep, (0, keys_padding, 0, rows_padding), value=False
            )
            rows = torch.nn.functional.pad(case.rows, (0, rows_padding), value=False)
            sides.append(Attention(grown_query, grown_key, scale=side.scale, mask=mask, rows=rows))
        value = losses.attention_kl(*sides)
        mean = losses.masked_mean(value, losses.shared_rows(*sides))
        gradients = torch.autograd.grad(mean, leaves)
        return value[..., : case.keep.shape[2]], mean, *gradients

    plain, padded = value_and_gradient(0, 0), value_and_gradient(more_rows, more_keys)
    for one, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        assert other.isfinite().all()


@pytest.mark.parametrize("heads", [None, "mean"])
def test_gradcheck_both_sides(heads):
    keep = torch.tensor([[True, True, False], [True, True, True]])[:, None, None]
    leaves = [
        torch.randn(2, h, n, 2, dtype=torch.float64, requires_grad=True)
        for h, n in [(4, 3), (2, 3), (4, 3), (4, 3)]
    ]

    def loss(student_query, student_key, teacher_query, teacher_key):
        student = Attention(student_query, student_key, mask=keep)
        teacher = Attention(teacher_query, teacher_key, mask=keep)
        return losses.attention_kl(student, teacher, temperature=1.5, heads=heads)

    torch.autograd.gradcheck(loss, leaves)


def test_heads_mean_compares_averages_of_unequal_numbers_of_heads():
    student = Attention.from_probabilities(torch.tensor([[[[0.5, 0.5]], [[0.1, 0.9]]]]))
    teacher = Attention.from_probabilities(torch.tensor([[[[0.2, 0.8]]]]))
    # means: student (0.3, 0.7), teacher (0.2, 0.8)
    expected = 0.2 * math.log(0.2 / 0.3) + 0.8 * math.log(0.8 / 0.7)
    value = losses.attention_kl(student, teacher, heads="mean")
    assert value.shape == (1, 1, 1)
    assert value.item() == pytest.approx(expected, rel=1e-5)


ATTENTION_LOSSES = (
    losses.attention_kl,
    losses.attention_reverse_kl,
    losses.attention_jsd,
    losses.attention_mse,
    losses.attention_cosine_distance,
)


@pytest.mark.parametrize("heads", [None, "mean"])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("loss", ATTENTION_LOSSES, ids=lambda loss: loss.__name__)
def test_nan_is_seen_through_an_average_over_heads(loss, side, heads):
    whole = torch.randn(1, 2, 3, 4)
    diverged = Attention(torch.full_like(whole, math.nan), whole)
    sides = {"student": Attention(whole, whole), "teacher": Attention(whole, whole)}
    assert loss(**{**sides, side: diverged}, heads=heads).isnan().all()


@pytest.mark.parametrize("method", ["dense", "saved", "recompute"])
def test_nan_is_seen_through_an_average_in_every_way_to_compute(method):
    whole = torch.randn(1, 2, 3, 4)
    student = Attention(torch.full_like(whole, math.nan), whole)
    value = losses.attention_kl(student, Attention(whole, whole), heads="mean", method=method)
    assert value.isnan().all()


@pytest.mark.parametrize("loss", ATTENTION_LOSSES, ids=lambda loss: loss.__name__)
def test_shared_rows_have_the_shape_of_the_value(loss):
    keep = torch.tensor([[True, False], [True, True]])[None, :, None, :]  # of head 0, of head 1
    keep = keep & torch.tensor([[[[True], [True], [True]], [[True], [False], [True]]]])
    student = Attention(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 2, 4))
    teacher = Attention(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 2, 4), mask=keep)
    rows = losses.shared_rows(student, teacher)
    assert rows.tolist() == [[[True, True, True], [True, False, True]]]
    averaged = losses.shared_rows(student, teacher, heads="mean")
    assert averaged.tolist() == [[[True, False, True]]]
    value = loss(student, teacher, heads="mean")
    assert averaged.shape == value.shape
    assert not value[~averaged].any()
    losses.masked_mean(value, averaged)
    one_head = Attention(torch.randn(1, 1, 3, 4), torch.randn(1, 1, 2, 4))
    unequal = losses.shared_rows(one_head, teacher)
    assert torch.equal(unequal, averaged), "what only an average can compare"
    assert loss(one_head, teacher, heads="mean").shape == unequal.shape
    with pytest.raises(errors.OptionError, match="heads is None or"):
        losses.shared_rows(student, teacher, heads="max")


def test_a_key_that_only_the_student_lacks_is_infinite_and_the_reverse_is_not():
    full = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    less = torch.tensor([[[[0.0, 1.0, -math.inf]]]])
    assert (
        losses.attention_kl(Attention.from_scores(less), Attention.from_scores(full)).item()
        == math.inf
    )
    value = losses.attention_kl(Attention.from_scores(full), Attention.from_scores(less)).item()
    p, q = (torch.tensor(x).softmax(-1) for x in ([0.0, 1.0], [0.0, 1.0, 2.0]))
    assert value == pytest.approx((p * (p / q[:2]).log()).sum().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype):
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 16, 8).to(dtype), torch.randn(2, 2, 16, 8).to(dtype)
    near = (query.float() + 0.05 * torch.randn(query.shape)).to(dtype)
    near.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = losses.attention_kl(Attention(near, key), Attention(query, key))
    exact_near = near.detach().double().requires_grad_()
    exact = losses.attention_kl(
        Attention(exact_near, key.double()), Attention(query.double(), key.double())
    )
    torch.testing.assert_close(value.double(), exact, rtol=1e-3, atol=1e-7)
    value.sum().backward()
    exact.sum().backward()
    error = (near.grad.double() - exact_near.grad).norm() / exact_near.grad.norm()
    assert error < 5e-3  # storing the gradient in half precision costs this much, no more


def test_empty_sizes():
    for b, q, k in [(0, 2, 3), (2, 0, 3), (2, 2, 0)]:
        attention = Attention(torch.randn(b, 2, q, 4), torch.randn(b, 2, k, 4))
        value = losses.attention_kl(attention, attention)
        assert value.shape == (b, 2, q)
        assert losses.masked_mean(value, losses.shared_rows(attention, attention)).item() == 0


class TestBadInput:
    def attention(self, b=2, h=4, q=3, k=5):
        return Attention(torch.randn(b, h, q, 8), torch.randn(b, h, k, 8))

    def test_unequal_heads_name_the_option(self):
        with pytest.raises(
            errors.ShapeError, match=r'\(2, 2, 3, 5\).*\(2, 4, 3, 5\).*heads="mean"'
        ):
            losses.attention_kl(self.attention(h=2), self.attention())

    @pytest.mark.parametrize("other", [{"q": 4}, {"k": 6}])
    def test_unequal_tokens(self, other):
        with pytest.raises(errors.ShapeError, match="differ in number"):
            losses.attention_kl(self.attention(**other), self.attention())

    def test_unequal_batches(self):
        with pytest.raises(errors.ShapeError, match="example with example"):
            losses.attention_kl(self.attention(b=1), self.attention())

    def test_options(self):
        with pytest.raises(errors.OptionError, match="temperature must be greater than 0"):
            losses.attention_kl(self.attention(), self.attention(), temperature=-1.0)
        with pytest.raises(errors.OptionError, match="heads is None or"):
            losses.attention_kl(self.attention(), self.attention(), heads="max")
