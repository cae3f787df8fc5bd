"""Positions weighted by a signal of the teacher: mean 1 over what counts, parts add up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import distillkit as dk
from distillkit import errors, losses

VALID = torch.tensor([[True, True, True, False], [True, True, False, False], [True] * 4])


def signals(weights, *, valid=VALID, seed=0, **others):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, 4, 5, generator=generator)
    masks = None if valid is None else {"hidden.image": valid}
    return (
        dk.Signals({"hidden.image": student.requires_grad_()}, masks=masks),
        dk.Signals({"hidden.image": teacher, "w": weights, **others}, masks=masks),
    )


def expected(student, teacher, weights, kept, per):
    """The weighted mean, example by example, as the equation says."""
    values = losses.mse(student["hidden.image"], teacher["hidden.image"]).detach()
    sums = [
        float((v[k] * w[k] / w[k].sum()).sum() * k.sum())
        for v, w, k in zip(values, weights, kept, strict=True)
    ]
    counts = [int(k.sum()) for k in kept]
    if per == "row":
        return sum(sums) / sum(counts)
    return sum(s / n for s, n in zip(sums, counts, strict=True)) / len(sums)


class TestValues:
    @pytest.mark.parametrize("per", ["row", "example"])
    def test_by_hand(self, per):
        weights = torch.rand(3, 4) + 0.1
        weights[~VALID] = torch.nan
        student, teacher = signals(weights)
        term = dk.Term("mse", on="hidden.image", per=per, token_weights="w")
        value = term(student, teacher)
        assert value.item() == pytest.approx(
            expected(student, teacher, weights, VALID, per), rel=1e-5
        )

    @given(st.integers(0, 1000), st.sampled_from(["row", "example"]))
    def test_the_parts_of_a_batch_add_up(self, seed, per):
        weights = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed))
        student, teacher = signals(weights, seed=seed)
        term = dk.Term("mse", on="hidden.image", per=per, token_weights="w")
        comparison = term.compare(student, teacher)
        whole = term(student, teacher, comparison=comparison)
        amount = comparison.counts
        parts = [
            term(*(s.take(index) for s in (student, teacher)), normalizer=amount)
            for index in (slice(0, 1), slice(1, 3))
        ]
        torch.testing.assert_close(sum(parts), whole)

    def test_equal_weights_change_nothing(self):
        student, teacher = signals(torch.full((3, 4), 0.3))
        terms = [dk.Term("mse", on="hidden.image", token_weights=w) for w in (None, "w")]
        torch.testing.assert_close(*(term(student, teacher) for term in terms))

    def test_no_weight_at_all_is_the_same_weight(self):
        student, teacher = signals(torch.zeros(3, 4))
        weighted = dk.Term("mse", on="hidden.image", token_weights="w")(student, teacher)
        plain = dk.Term("mse", on="hidden.image")(student, teacher)
        torch.testing.assert_close(weighted, plain)

    def test_softmax(self):
        scores = torch.randn(3, 4)
        student, teacher = signals(scores)
        term = dk.Term("mse", on="hidden.image", token_weights={"signal": "w", "softmax": True})
        value = term(student, teacher).item()
        found = expected(student, teacher, scores.exp(), VALID, "example")
        assert value == pytest.approx(found, rel=1e-5)

    @pytest.mark.parametrize("query", [None, 0, -1])
    def test_an_attention_of_one_query_or_of_all(self, query):
        rows = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
        scores = torch.randn(3, 2, 3, 4)
        attention = dk.Attention.from_scores(scores, rows=rows)
        student, teacher = signals([attention.detach(), attention])
        p = torch.where(rows[:, None, :, None], scores.softmax(-1), 0)
        weights = p.sum((1, 2)) if query is None else p[:, :, query].sum(1)
        weights = torch.where(weights.sum(1, keepdim=True) == 0, 1, weights)
        term = dk.Term("mse", on="hidden.image", token_weights={"signal": "w", "query": query})
        value = term(student, teacher).item()
        assert value == pytest.approx(
            expected(student, teacher, weights, VALID, "example"), rel=1e-5
        )

    def test_rows_of_attentions(self):
        one, other = (dk.Attention.from_scores(torch.randn(2, 2, 3, 4)) for _ in "st")
        weights = torch.rand(2, 3)
        student = dk.Signals({"a": dk.Attention.from_scores(one.scores().requires_grad_())})
        term = dk.Term("attention_kl", on="a", token_weights="w")
        value = term(student, dk.Signals({"a": other, "w": weights}))
        values = losses.attention_kl(one, other)
        shares = weights / weights.mean(1, keepdim=True)
        torch.testing.assert_close(value, (values * shares[:, None]).mean())

    def test_the_weights_have_no_gradient_and_the_values_have(self):
        weights = torch.rand(3, 4, requires_grad=True)
        student, teacher = signals(weights)
        dk.Term("mse", on="hidden.image", token_weights="w")(student, teacher).backward()
        assert weights.grad is None
        assert student["hidden.image"].grad[VALID].all()
        assert not student["hidden.image"].grad[~VALID].any()

    def test_nan_of_a_weight_is_seen(self):
        weights = torch.rand(3, 4)
        weights[0, 0] = torch.nan
        assert dk.Term("mse", on="hidden.image", token_weights="w")(*signals(weights)).isnan()


class TestWanted:
    def test_the_teacher_keeps_the_layer(self):
        objective = dk.Recipe(name="t", terms=[{
            "loss": "mse", "on": "hidden.image",
            "token_weights": {"signal": "attention.image", "layer": 3},
        }]).build()  # fmt: skip
        from distillkit._objective.objective import wanted_layers

        assert wanted_layers(objective, 1)["attention.image"] == frozenset({3})
        assert "attention.image" not in wanted_layers(objective, 0)


class TestErrors:
    @pytest.mark.parametrize(
        ("weights", "given", "says"),
        [
            (torch.rand(3, 5), "w", r"\(3, 5\) tokens.*\(3, 4\)"),
            (torch.rand(3, 4, 2), "w", r"\(b, n\).*\(3, 4, 2\)"),
            (-torch.rand(3, 4), "w", "below 0.*softmax = true"),
            (torch.rand(3, 4), "v", "'v'.*'w'"),
            ([torch.rand(3, 4)], {"signal": "w", "layer": 1}, "no layer 1; it has 1"),
            (torch.rand(3, 4), {"signal": "w", "query": 0}, "without a `query`"),
        ],
    )
    def test_signals(self, weights, given, says):
        term = dk.Term("mse", on="hidden.image", token_weights=given)
        with pytest.raises(errors.DistillKitError, match=says):
            term(*signals(weights))

    def test_a_query_that_is_not_there(self):
        attention = dk.Attention.from_scores(torch.zeros(3, 1, 2, 4))
        term = dk.Term("mse", on="hidden.image", token_weights={"signal": "w", "query": 2})
        with pytest.raises(errors.RecipeError, match="no query 2; it has 2"):
            term(*signals(attention))

    def test_values_of_whole_examples(self):
        term = dk.Term("relation_cosine_distance", on="hidden.image", token_weights="w")
        with pytest.raises(errors.ShapeError, match="values are"):
            term(*signals(torch.rand(3, 4)))

    def test_an_unknown_key(self):
        with pytest.raises(errors.DistillKitError, match="did you mean 'layer'"):
            dk.Term("mse", on="a", token_weights={"signal": "w", "layers": 1})
