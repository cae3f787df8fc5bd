"""The arithmetic of an ensemble, by values and by its properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit._objective.mixing import confidence_weights, mean_probabilities, mean_values
from distillkit.errors import ShapeError

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def softmax(row):
    """By hand, so that nothing of what is tested computes the expected value."""
    powers = [math.exp(x) for x in row]
    return [x / sum(powers) for x in powers]


@st.composite
def logits(draw, teachers=None):
    """(k, b, v) in float64, of which some classes are excluded."""
    k = teachers or draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    shape = (k, draw(st.integers(0, 3)), draw(st.integers(1, 5)))
    found = torch.randn(shape, generator=generator, dtype=torch.float64) * draw(
        st.sampled_from([1e-3, 1.0, 30.0])
    )
    if draw(st.booleans()):
        found = found.masked_fill(torch.rand(shape, generator=generator) < 0.4, -torch.inf)
    return found


def weights_of(draw, k):
    found = torch.tensor(
        draw(st.lists(st.floats(0.1, 9.0), min_size=k, max_size=k)), dtype=torch.float64
    )
    return found / found.sum()


temperatures = st.sampled_from([0.5, 1.0, 4.0])


class TestMeanProbabilities:
    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_the_loss_sees_the_mean_at_its_temperature(self, temperature):
        one, other = [2.0, -1.0, 0.5], [0.0, 3.0, 1.0]
        expected = [
            0.3 * p + 0.7 * q
            for p, q in zip(
                softmax([x / temperature for x in one]),
                softmax([x / temperature for x in other]),
                strict=True,
            )
        ]
        tensors = [torch.tensor(x, dtype=torch.float64) for x in (one, other)]
        found = mean_probabilities(tensors, [0.3, 0.7], temperature)
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close((found / temperature).softmax(-1), expected, **CLOSE)

    @given(st.data(), logits(), temperatures)
    @settings(deadline=None)
    def test_it_is_the_weighted_mean_wherever_all_keep_a_class(self, data, given_, temperature):
        weights = weights_of(data.draw, len(given_))
        found = mean_probabilities(list(given_), weights, temperature)
        rows = (given_ != -torch.inf).any(-1).all(0)
        each = (given_ / temperature).softmax(-1)
        expected = (weights[:, None, None] * each).sum(0)
        assert not found.isnan().any()
        torch.testing.assert_close(
            (found / temperature).softmax(-1)[rows], expected[rows], rtol=1e-7, atol=1e-12
        )

    @given(logits(teachers=1), st.integers(1, 4), temperatures)
    @settings(deadline=None)
    def test_teachers_that_agree_change_nothing(self, one, times, temperature):
        found = mean_probabilities(list(one) * times, [1 / times] * times, temperature)
        kept = (one[0] != -torch.inf).any(-1)
        torch.testing.assert_close(
            (found / temperature).softmax(-1)[kept],
            (one[0] / temperature).softmax(-1)[kept],
            rtol=1e-7,
            atol=1e-12,
        )
        assert (found[~kept] == -torch.inf).all()

    @given(st.data(), logits(), temperatures)
    @settings(deadline=None)
    def test_the_order_of_teachers_is_nothing(self, data, given_, temperature):
        weights = weights_of(data.draw, len(given_))
        order = data.draw(st.permutations(range(len(given_))))
        torch.testing.assert_close(
            mean_probabilities(list(given_), weights, temperature),
            mean_probabilities([given_[i] for i in order], weights[list(order)], temperature),
            rtol=1e-7,
            atol=1e-9,
        )

    def test_the_gradient_is_finite_where_nothing_is_kept(self):
        one = torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]], requires_grad=True)
        other = torch.tensor([[1.0, 2.0], [-torch.inf, -torch.inf]], requires_grad=True)
        mean_probabilities([one, other], [0.5, 0.5], 2.0)[0].sum().backward()
        assert one.grad.isfinite().all()
        assert other.grad.isfinite().all()

    def test_nan_is_seen(self):
        broken = torch.tensor([[math.nan, 0.0]])
        assert mean_probabilities([broken, torch.zeros(1, 2)], [0.5, 0.5], 1.0).isnan().any()

    def test_half_precision_is_computed_in_float32(self):
        halves = [torch.zeros(1, 3, dtype=torch.bfloat16)] * 2
        assert mean_probabilities(halves, [0.5, 0.5], 1.0).dtype == torch.float32
        assert mean_values(halves, [0.5, 0.5]).dtype == torch.float32


class TestConfidence:
    def test_labels_weigh_as_the_paper_says(self):
        one, other, third = [2.0, 0.0], [0.0, 1.0], [0.0, 0.0]
        losses = [-math.log(softmax(x)[0]) for x in (one, other, third)]
        shares = softmax(losses)
        expected = torch.tensor([(1 - x) / 2 for x in shares], dtype=torch.float64)
        tensors = [torch.tensor([x], dtype=torch.float64) for x in (one, other, third)]
        found = confidence_weights(tensors, torch.tensor([0]))
        torch.testing.assert_close(found[:, 0], expected, **CLOSE)

    def test_without_labels_the_entropy_weighs(self):
        sure, unsure = [3.0, 0.0], [0.5, 0.0]
        doubts = [-sum(p * math.log(p) for p in softmax(x)) for x in (sure, unsure)]
        expected = torch.tensor([1 - x for x in softmax(doubts)], dtype=torch.float64)
        tensors = [torch.tensor([x], dtype=torch.float64) for x in (sure, unsure)]
        torch.testing.assert_close(confidence_weights(tensors)[:, 0], expected, **CLOSE)

    @given(st.data(), logits())
    @settings(deadline=None)
    def test_weights_are_a_distribution_and_follow_the_order(self, data, given_):
        labels = None
        if data.draw(st.booleans()):
            labels = torch.randint(-1, given_.shape[-1], given_.shape[1:-1])
        found = confidence_weights(list(given_), labels)
        assert (found >= 0).all()
        torch.testing.assert_close(found.sum(0), torch.ones_like(found[0]), **CLOSE)
        order = data.draw(st.permutations(range(len(given_))))
        moved = confidence_weights([given_[i] for i in order], labels)
        torch.testing.assert_close(moved, found[list(order)], **CLOSE)

    def test_positions_without_a_label_believe_all_alike(self):
        found = confidence_weights([torch.randn(2, 3), torch.randn(2, 3)], torch.tensor([-100, 1]))
        assert found[:, 0].tolist() == [0.5, 0.5]
        assert found[0, 1] != found[1, 1]

    def test_teachers_that_exclude_the_label_are_equally_wrong(self):
        wrong = torch.tensor([[-torch.inf, 0.0]])
        right = torch.zeros(1, 2)
        label = torch.tensor([0])
        assert confidence_weights([wrong, wrong], label)[:, 0].tolist() == [0.5, 0.5]
        assert confidence_weights([wrong, right], label)[:, 0].tolist() == [0.0, 1.0]

    @pytest.mark.parametrize(
        ("labels", "match"),
        [
            (torch.tensor([0]), r"one for each position \(2,\); got torch.int64 \(1,\)"),
            (torch.tensor([0.0, 1.0]), "are integers"),
            (torch.tensor([0, 3]), "classes below 3; got 3"),
        ],
    )
    def test_labels_that_are_none(self, labels, match):
        with pytest.raises(ShapeError, match=match):
            confidence_weights([torch.zeros(2, 3)] * 2, labels)


@given(st.data(), logits())
@settings(deadline=None)
def test_mean_of_values(data, given_):
    given_ = given_.masked_fill(given_ == -torch.inf, 2.0)
    weights = weights_of(data.draw, len(given_))
    expected = sum(w * x for w, x in zip(weights, given_, strict=True))
    torch.testing.assert_close(mean_values(list(given_), weights), expected, **CLOSE)
