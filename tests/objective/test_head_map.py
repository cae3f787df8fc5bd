"""A mixture of heads: distributions, whatever is masked, and parameters as a projector's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import distillkit as dk
from distillkit import errors, testing
from distillkit._objective.align.head_map import HeadMap
from distillkit.testing.strategies import attentions


def mapped(attention, heads, seed=0):
    """The map of random weights, and the same mixture written out."""
    aligner = HeadMap(student_heads=attention.shape[1], teacher_heads=heads)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        aligner.weight.copy_(torch.randn(aligner.weight.shape, generator=generator) * 2)
    b, _, q, k = attention.shape
    teacher = dk.Attention.from_scores(torch.zeros(b, heads, q, k))
    return aligner, aligner(attention, teacher)[0]


class TestMixture:
    @given(attentions(), st.integers(1, 4))
    def test_rows_stay_distributions(self, attention, heads):
        aligner, found = mapped(attention, heads)
        rows = attention.valid_rows().all(1)
        weights = aligner.weight.detach().double().softmax(-1)
        p = torch.where(rows[:, None, :, None], attention.probabilities(), 0)
        expected = torch.einsum("gh,bhqk->bgqk", weights, p)
        torch.testing.assert_close(found.probabilities(), expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(found.valid_rows(), rows[:, None].expand(found.shape[:3]))
        assert torch.equal(
            found.keep(),
            (attention.keep().any(1, keepdim=True) & rows[:, None, :, None]).expand(found.shape),
        )

    def test_a_row_without_keys_in_one_head_does_not_count(self):
        mask = torch.ones(1, 2, 2, 3, dtype=torch.bool)
        mask[0, 1, 0] = False
        mask[0, 0, 1, 2] = False
        _, found = mapped(dk.Attention.from_scores(torch.randn(1, 2, 2, 3), mask=mask), 3)
        assert found.valid_rows().tolist() == [[[False, True]] * 3]
        assert not found.probabilities()[:, :, 0].any()
        torch.testing.assert_close(found.probabilities()[:, :, 1].sum(-1), torch.ones(1, 3))

    def test_a_probability_that_underflows_is_kept(self):
        scores = torch.tensor([[[[0.0, -300.0]], [[0.0, -400.0]]]])
        _, found = mapped(dk.Attention.from_scores(scores), 3)
        assert found.scores().isfinite().all()
        assert (found.scores()[..., 1] < -299).all()

    def test_gradient(self):
        scores = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
        mask = torch.rand(2, 1, 3, 4) < 0.7
        mask[..., 0] = True
        aligner = HeadMap(student_heads=2, teacher_heads=3).double()
        teacher = dk.Attention.from_scores(torch.zeros(2, 3, 3, 4))

        def mixed(scores, weight):
            attention = dk.Attention.from_scores(scores, mask=mask)
            one, _ = torch.func.functional_call(aligner, {"weight": weight}, (attention, teacher))
            return one.probabilities()

        assert torch.autograd.gradcheck(mixed, (scores, torch.randn(
            3, 2, dtype=torch.float64, requires_grad=True
        )))  # fmt: skip


class TestInATerm:
    def test_an_example_gives_the_heads_and_they_learn(self):
        student = dk.Attention(torch.randn(2, 2, 3, 4, requires_grad=True), torch.randn(2, 2, 3, 4))
        teacher = dk.Attention(torch.randn(2, 3, 3, 4), torch.randn(2, 3, 3, 4))
        one, other = (dk.Signals({"attention.text": x}) for x in (student, teacher))
        term = dk.Term("attention_kl", on="attention.text", align=["head_map"])
        assert not term.aligners.are_built
        with pytest.raises(errors.ShapeError, match="no numbers of heads yet"):
            term(one, other)
        term.build_aligners(one, other)
        assert dict(term.named_parameters())["aligners.0.weight"].shape == (3, 2)
        optimizer = torch.optim.SGD(term.parameters(), lr=1.0)
        values = []
        for _ in range(20):
            optimizer.zero_grad()
            values.append(term(one, other))
            values[-1].backward()
            optimizer.step()
        assert values[-1] < values[0]

    def test_one_number_of_heads_alone(self):
        with pytest.raises(errors.OptionError, match="both student_heads and teacher_heads"):
            HeadMap(student_heads=2)

    def test_other_heads_than_it_was_made_for(self):
        aligner = HeadMap(student_heads=2, teacher_heads=3)
        one, other = (dk.Attention.from_scores(torch.zeros(1, h, 2, 2)) for h in (3, 3))
        with pytest.raises(errors.ShapeError, match=r"2 heads to 3.*\(1, 3, 2, 2\)"):
            aligner(one, other)

    def test_the_kit_passes_it_with_one_head(self):
        def heads():
            made = [dk.Attention(torch.randn(2, h, 3, 5), torch.randn(2, h, 4, 5)) for h in (4, 1)]
            return made[0], made[1]

        for result in testing.check_aligner("head_map", heads):
            assert not result.failed, str(result)
