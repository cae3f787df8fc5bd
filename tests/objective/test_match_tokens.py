"""Tokens in pairs: the least total distance, each token once, padding never."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import distillkit as dk
from distillkit import errors
from distillkit._objective.align.match_tokens import MatchTokens


def axis(valid):
    return (dk.TokenAxis("image", valid=valid),)


@st.composite
def batches(draw):
    b, n, m = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    sides, kept = [], []
    for count in (n, m):
        sides.append(torch.randn(b, count, 3, generator=generator, dtype=torch.float64))
        kept.append(torch.rand(b, count, generator=generator) < 0.8)
    return sides, kept


def least(costs):
    """The least total cost of a one-to-one assignment, tried out."""
    n, m = costs.shape
    if n > m:
        return least(costs.T)
    return min(
        (sum(float(costs[i, j]) for i, j in enumerate(chosen))
         for chosen in itertools.permutations(range(m), n)),
        default=0.0,
    )  # fmt: skip


class TestPairs:
    @given(batches(), st.sampled_from(["l1", "cosine"]))
    def test_no_other_pairs_are_nearer(self, drawn, cost):
        (student, teacher), kept = drawn
        pairs = list(zip((student, teacher), kept, strict=True))
        filled = [x.masked_fill(~k[..., None], torch.nan) for x, k in pairs]
        aligner, axes = MatchTokens(cost=cost), list(map(axis, kept))
        one, other = aligner(*filled, student_tokens=axes[0], teacher_tokens=axes[1])
        after = aligner.align_tokens(*axes)
        assert one.shape == other.shape == (len(student), min(len(kept[0][0]), len(kept[1][0])), 3)
        valid = after[0][0].valid
        assert torch.equal(valid, after[1][0].valid)
        assert valid.sum(1).tolist() == torch.minimum(*(k.sum(1) for k in kept)).tolist()
        assert not one[~valid].any()
        assert not other[~valid].any()
        for i in range(len(student)):
            real = [x[i][k[i]] for x, k in pairs]
            found = [x[i][valid[i]] for x in (one, other)]
            for all_of, chosen in zip(real, found, strict=True):
                rows = {tuple(x) for x in all_of.tolist()}
                assert len({tuple(x) for x in chosen.tolist()}) == len(chosen)
                assert all(tuple(x) in rows for x in chosen.tolist())
            total = float(distance(*found, cost).sum()) if len(found[0]) else 0.0
            every = distance(real[0][:, None], real[1][None], cost)
            assert total == pytest.approx(least(every), abs=1e-9)

    def test_the_gradient_goes_through_the_values(self):
        student = torch.tensor([[[0.0], [5.0], [9.0]]], requires_grad=True)
        teacher = torch.tensor([[[8.0], [1.0]]])
        one, other = MatchTokens()(
            student, teacher, student_tokens=axis(None), teacher_tokens=axis(None)
        )
        assert other.flatten().tolist() == [1.0, 8.0]
        (one - other).square().sum().backward()
        assert student.grad.flatten().tolist() == [-2.0, 0.0, 2.0]

    def test_a_model_that_diverged_is_seen(self):
        student, teacher = torch.full((1, 2, 3), torch.nan), torch.randn(1, 2, 3)
        one, _ = MatchTokens()(
            student, teacher, student_tokens=axis(None), teacher_tokens=axis(None)
        )
        assert one.isnan().all()


def distance(one, other, cost):
    if cost == "l1":
        return (one - other).abs().sum(-1)
    return 1 - torch.cosine_similarity(one, other, dim=-1)


class TestInATerm:
    @pytest.mark.parametrize("per", ["row", "example"])
    def test_padding_does_not_count(self, per):
        valid = torch.tensor([[True, True, True], [True, False, False]])
        student = torch.randn(2, 3, 4, requires_grad=True)
        teacher = student.detach().flip(1) + 0.01
        both = valid.flip(1)
        term = dk.Term("mse", on="hidden.image", per=per, align=["match_tokens"])
        value = term(
            dk.Signals({"hidden.image": student}, axes={"hidden.image": axis(valid)}),
            dk.Signals({"hidden.image": teacher}, axes={"hidden.image": axis(both)}),
        )
        assert value.item() == pytest.approx(1e-4, rel=1e-3)

    def test_tokens_of_which_nothing_is_known(self):
        signals = dk.Signals({"hidden.image": torch.randn(2, 3, 4, requires_grad=True)})
        term = dk.Term("mse", on="hidden.image", align=["match_tokens"])
        with pytest.raises(errors.ShapeError, match="student's tokens are padding"):
            term(signals, signals)

    def test_padding_of_one_side_and_no_size_of_the_other(self):
        with pytest.raises(errors.ShapeError, match="how many tokens the teacher has"):
            MatchTokens().align_tokens(axis(torch.ones(1, 2).bool()), axis(None))


class TestErrors:
    def test_widths_that_differ(self):
        known = {"student_tokens": axis(None), "teacher_tokens": axis(None)}
        with pytest.raises(errors.ShapeError, match=r"\(1, 2, 3\).*\(1, 2, 4\).*projector"):
            MatchTokens()(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), **known)

    def test_an_unknown_cost(self):
        with pytest.raises(errors.OptionError, match="'l2'"):
            dk.Term("mse", on="a", align=[{"name": "match_tokens", "cost": "l2"}])

    def test_without_scipy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "scipy.optimize", None)
        with pytest.raises(errors.RecipeError, match=r"pip install 'distillkit\[match\]'"):
            dk.Term("mse", on="a", align=["match_tokens"])
