"""The oracle against scipy and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from tests.support import loss_oracle as oracle
from tests.support.loss_oracle import Attention

NAN, INF = math.nan, math.inf
LOG2, LOG3 = math.log(2), math.log(3)


def close(actual, expected, rtol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-13)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class TestKL:
    @pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
    def test_scipy(self, rng, temperature):
        s, t = 3 * rng.normal(size=(2, 4, 5, 7))
        p, q = softmax(t / temperature, -1), softmax(s / temperature, -1)
        expected = temperature**2 * entropy(p, q, axis=-1)
        close(oracle.kl_divergence(s, t, temperature=temperature), expected)

    def test_by_hand(self):
        # p = (1/4, 3/4), q = (1/2, 1/2): 1/4 ln(1/2) + 3/4 ln(3/2) = 3/4 ln 3 - ln 2
        close(oracle.kl_divergence([[0.0, 0.0]], [[0.0, LOG3]]), [0.75 * LOG3 - LOG2])
        # T = 2 makes 2 ln 3 / 2 = ln 3 of it, and multiplies by 4
        value = oracle.kl_divergence([[0.0, 0.0]], [[0.0, 2 * LOG3]], temperature=2.0)
        close(value, [4 * (0.75 * LOG3 - LOG2)])

    def test_minus_infinity(self):
        # both: the third class is nobody's, p = (1/4, 3/4) as above
        close(oracle.kl_divergence([0.0, 0.0, -INF], [0.0, LOG3, -INF]), 0.75 * LOG3 - LOG2)
        # the student alone
        assert oracle.kl_divergence([0.0, -INF], [0.0, 0.0]) == INF
        # the teacher alone: p = (1, 0), q = (1/2, 1/2): ln 2
        close(oracle.kl_divergence([0.0, 0.0], [0.0, -INF]), LOG2)
        # a teacher without any mass; a student without any
        assert oracle.kl_divergence([0.0, 0.0], [-INF, -INF]) == 0
        assert oracle.kl_divergence([-INF, -INF], [-INF, -INF]) == 0
        assert oracle.kl_divergence([-INF, -INF], [0.0, 0.0]) == INF

    def test_where(self, rng):
        s, t = rng.normal(size=(2, 3, 5))
        expected = oracle.kl_divergence(s[:, :3], t[:, :3])
        s[:, 3:], t[:, 3:] = [NAN, INF], [-INF, NAN]
        close(oracle.kl_divergence(s, t, where=np.arange(5) < 3), expected)
        assert (oracle.kl_divergence(s, t, where=np.zeros((3, 1), bool)) == 0).all()

    def test_degenerate(self, rng):
        s = rng.normal(size=(4, 6)) * 50
        assert (oracle.kl_divergence(s, s, temperature=0.1) == 0).all()
        assert (oracle.kl_divergence(s[:, :1], -s[:, :1]) == 0).all()
        assert oracle.kl_divergence(s[:0], s[:0]).shape == (0,)
        # far logits: p = (1, 0), q = (e^-1000, 1): KL = 1000
        close(oracle.kl_divergence([0.0, 1000.0], [1000.0, 0.0]), 1000.0)


class TestFeatures:
    def test_mse(self):
        # (1 + 4 + 0) / 3
        close(oracle.mse([[1.0, 2.0, 3.0]], [[0.0, 0.0, 3.0]]), [5 / 3])

    def test_cosine(self, rng):
        s, t = rng.normal(size=(2, 5, 4))
        close(oracle.cosine_distance(s, t), [cosine(a, b) for a, b in zip(s, t, strict=True)])
        # 3-4-5: <(3, 4), (1, 0)> / 5 = 0.6
        close(oracle.cosine_distance([3.0, 4.0], [7.0, 0.0]), 0.4)
        close(oracle.cosine_distance([3e-200, 4e-200], [7e200, 0.0]), 0.4)

    def test_zero_vectors(self):
        zero, one = [0.0, 0.0], [1.0, 0.0]
        values = oracle.cosine_distance([zero, one, zero, one], [one, zero, zero, one])
        assert values.tolist() == [1, 1, 1, 0]


class TestReduction:
    def test_by_hand(self):
        values = [[1.0, 2.0], [NAN, 5.0]]
        mask = [[True, True], [False, True]]
        close(oracle.masked_mean(values, mask), 8 / 3)
        close(oracle.masked_mean(values, mask, normalizer=4), 2.0)
        # weights: (0.5 * 1 + 1 * 2 + 0.5 * 5) / 2
        close(oracle.masked_mean(values, [[0.5, 1.0], [0.0, 0.5]]), 2.5)
        # a mask (2, 1) counts twice: (1 + 2) / 2
        close(oracle.masked_mean(values, [[True], [False]]), 1.5)

    def test_nothing_kept(self):
        assert oracle.masked_mean([NAN, INF], [False, False]) == 0
        assert oracle.masked_mean([NAN, INF], [0.0, 0.0], normalizer=0) == 0
        assert oracle.masked_mean([]) == 0
        assert oracle.mean_per_example(np.zeros((0, 2))) == 0

    def test_per_example_and_per_row(self):
        values = np.array([[1.0, 3.0, 8.0], [10.0, NAN, NAN], [NAN, NAN, NAN]])
        mask = np.array([[True, True, True], [True, False, False], [False, False, False]])
        # means 4, 10, 0 of three examples
        close(oracle.mean_per_example(values, mask), 14 / 3)
        # 1 + 3 + 8 + 10 over four rows
        close(oracle.mean_per_row(values, mask), 5.5)


class TestProbabilities:
    def test_scipy(self, rng):
        query, key = rng.normal(size=(2, 4, 3, 5)), rng.normal(size=(2, 2, 6, 5))
        mask, bias = rng.random((2, 1, 3, 6)) < 0.7, rng.normal(size=(4, 1, 6))
        mask[..., 0] = True
        scores = np.einsum("bhqd,bhkd->bhqk", query, key.repeat(2, axis=1)) / math.sqrt(5) + bias
        expected = softmax(np.where(mask, scores, -INF), -1)
        close(oracle.attention_probabilities(query, key, mask=mask, bias=bias), expected)

    def test_by_hand(self):
        # scores ln 3 and 0 for head 0, 0 and ln 3 for head 1, both over the one key head
        query = np.array([[[[LOG3, 0.0]], [[0.0, LOG3]]]])
        key = np.eye(2)[None, None]
        close(
            oracle.attention_probabilities(query, key, scale=1.0),
            [[[[0.75, 0.25]], [[0.25, 0.75]]]],
        )

    def test_grouped_heads_are_adjacent(self):
        # h = 4, g = 2: heads 0, 1 use key head 0 (scores 1, 0), heads 2, 3 key head 1 (scores 0, 1)
        key = np.array([[[[LOG3], [0.0]], [[0.0], [LOG3]]]])
        got = oracle.attention_probabilities(np.ones((1, 4, 1, 1)), key)
        close(got[0, :, 0, 0], [0.75, 0.75, 0.25, 0.25])

    def test_masked(self):
        query, key = np.ones((1, 1, 3, 1)), np.array([[[[0.0], [0.0], [NAN]]]])
        mask = np.array([[True, True, False], [True, False, False], [False, False, False]])
        bias = np.where(mask, 0.0, NAN)
        expected = [[[[0.5, 0.5, 0], [1, 0, 0], [0, 0, 0]]]]
        close(oracle.attention_probabilities(query, key, mask=mask, bias=bias), expected)

    def test_causal(self):
        query, key = np.ones((1, 1, 3, 1)), np.zeros((1, 1, 3, 1))
        expected = [[[[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]]]
        close(oracle.attention_probabilities(query, key, causal=True), expected)


def scores(array, **rest):
    """An attention whose scores are `array` (b, h, q, k): queries are rows, keys the identity."""
    array = np.asarray(array, float)
    b, h, _, k = array.shape
    return Attention(array, np.broadcast_to(np.eye(k), (b, h, k, k)), scale=1.0, **rest)


class TestAttentionKL:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_scipy(self, rng, temperature):
        s, t = rng.normal(size=(2, 2, 3, 4, 5))
        values, counted = oracle.attention_kl(scores(s), scores(t), temperature=temperature)
        p, q = softmax(t / temperature, -1), softmax(s / temperature, -1)
        close(values, temperature**2 * entropy(p, q, axis=-1))
        assert counted.all()
        close(values, oracle.kl_divergence(s, t, temperature=temperature))

    def test_head_mean_against_scipy(self, rng):
        s, t = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 2, 4, 5))
        values, counted = oracle.attention_kl(scores(s), scores(t), temperature=2.0, heads="mean")
        p, q = (np.exp(log_softmax(x / 2, -1)).mean(1, keepdims=True) for x in (t, s))
        close(values, 4 * entropy(p, q, axis=-1))
        assert values.shape == counted.shape == (2, 1, 4)
        with pytest.raises(ValueError, match="heads"):
            oracle.attention_kl(scores(s), scores(t))

    def test_head_mean_by_hand(self):
        # teacher (3/4, 1/4) and (1/4, 3/4): mean (1/2, 1/2); student (3/4, 1/4) twice:
        # 1/2 ln(2/3) + 1/2 ln 2 = ln 2 - 1/2 ln 3
        t, s = scores([[[[LOG3, 0]], [[0, LOG3]]]]), scores([[[[LOG3, 0]], [[LOG3, 0]]]])
        close(oracle.attention_kl(s, t, heads="mean")[0], [[[LOG2 - 0.5 * LOG3]]])

    def test_masks_that_differ(self):
        full = scores(np.zeros((1, 1, 1, 2)))
        half = scores(np.zeros((1, 1, 1, 2)), mask=np.array([True, False]))
        none = scores(np.zeros((1, 1, 1, 2)), mask=np.array([False, False]))
        # the student lacks a key that the teacher uses
        assert oracle.attention_kl(half, full) == (INF, True)
        assert oracle.attention_kl(none, full) == (INF, True)
        # the teacher alone lacks one: p = (1, 0), q = (1/2, 1/2)
        close(oracle.attention_kl(full, half)[0], [[[LOG2]]])
        # the teacher has none left: does not count
        assert oracle.attention_kl(full, none) == (0, False)
        assert oracle.attention_kl(none, none) == (0, False)

    def test_rows(self):
        t = np.zeros((1, 2, 3, 2))
        t[..., 0] = LOG3
        s, rows = np.zeros((1, 2, 3, 2)), np.array([[[True, False, True]]])
        s[:, :, 1], t[:, :, 2] = NAN, NAN
        student = scores(s, rows=rows)
        teacher = scores(t, rows=np.array([[[True, True, False], [False, True, False]]]))
        values, counted = oracle.attention_kl(student, teacher)
        assert counted[0].tolist() == [[True, False, False], [False, False, False]]
        # p = (3/4, 1/4), q = (1/2, 1/2)
        close(values[0], [[0.75 * LOG3 - LOG2, 0, 0], [0, 0, 0]])

    def test_a_bias_of_minus_infinity_is_a_mask(self):
        query, key = np.ones((1, 1, 2, 1)), np.array([[[[LOG3], [0.0], [NAN]]]])
        a = Attention(query, key, bias=np.array([[0, 0, -INF], [-INF, -INF, -INF]]))
        flat = Attention(query, np.zeros((1, 1, 3, 1)))
        close(oracle.attention_probabilities(query, key, bias=a.bias)[0, 0, 0], [0.75, 0.25, 0])
        # p = (3/4, 1/4, 0), q = (1/3, 1/3, 1/3): ln 3 - H(p), H(p) = 2 ln 2 - 3/4 ln 3
        values, counted = oracle.attention_kl(flat, a)
        close(values, [[[1.75 * LOG3 - 2 * LOG2, 0]]])
        assert counted.tolist() == [[[True, False]]]

    def test_head_mean_over_the_heads_that_count(self):
        # teacher: head 0 (3/4, 1/4), head 1 no key left, head 2 dropped by rows; student (1/2, 1/2)
        t = np.array([[[[LOG3, 0.0]], [[9.0, 0.0]], [[NAN, NAN]]]])
        mask = np.array([True, False, True]).reshape(1, 3, 1, 1)
        teacher = scores(t, mask=mask, rows=np.array([[[True], [True], [False]]]))
        values, counted = oracle.attention_kl(scores(np.zeros((1, 1, 1, 2))), teacher, heads="mean")
        close(values, [[[0.75 * LOG3 - LOG2]]])
        assert counted.tolist() == [[[True]]]

    def test_identity(self, rng):
        a = scores(rng.normal(size=(2, 3, 4, 5)) * 100, causal=True)
        for heads in (None, "mean"):
            assert (oracle.attention_kl(a, a, temperature=0.1, heads=heads)[0] == 0).all()

    def test_mappings(self, rng):
        s, t = scores(rng.normal(size=(1, 1, 2, 2))), scores(rng.normal(size=(1, 1, 2, 2)))
        as_mappings = oracle.attention_kl(vars(s), vars(t))
        close(as_mappings[0], oracle.attention_kl(s, t)[0])


class TestBetween:
    def test_ragged_by_hand(self):
        # example 0: tokens 0, 1 are text, 2, 3 image; example 1: token 0 is text, 1 image, 2, 3 padding
        array = np.full(
            (2, 1, 4, 4), 50.0
        )  # outside the blocks: would swamp them without renormalising
        array[0, 0, 0, 2:] = [LOG3, 0.0]
        array[0, 0, 1, 2:] = [0.0, 0.0]
        array[1, 0, 0, 1] = -7.0
        first, second = oracle.between(scores(array), [[0, 1], [0]], [[2, 3], [1]])
        close(first, [[[0.75, 0.25], [0.5, 0.5]]])
        close(second, [[[1.0]]])

    def test_is_the_softmax_renormalised(self, rng):
        query, key = rng.normal(size=(1, 2, 6, 3)), rng.normal(size=(1, 2, 6, 3))
        whole = oracle.attention_probabilities(query, key)[0]
        queries, keys = [5, 0], [1, 4, 2]
        block = whole[:, queries][:, :, keys]
        (got,) = oracle.between(Attention(query, key), [queries], [keys])
        close(got, block / block.sum(-1, keepdims=True))

    def test_keeps_the_sequence_mask_and_order(self):
        mask = np.array([True, True, False, True])
        (got,) = oracle.between(scores(np.zeros((1, 1, 4, 4)), mask=mask), [[0]], [[1, 2, 3]])
        close(got, [[[0.5, 0, 0.5]]])
        causal = scores(np.zeros((1, 1, 4, 4)), causal=True)
        # token 1 sees 0 and 1, of the block's keys only 1; token 0 sees none of them
        close(oracle.between(causal, [[1, 0]], [[1, 2]])[0], [[[1, 0], [0, 0]]])

    def test_empty_block(self):
        (got,) = oracle.between(scores(np.zeros((1, 1, 2, 2))), [[]], [[0, 1]])
        assert got.shape == (1, 0, 2)


class TestCross:
    def test_padding_by_hand(self):
        text = scores(
            np.array([[[[LOG3, 0.0, 0.0], [NAN, NAN, NAN]]]]), bias=np.full((1, 1, 2, 3), NAN)
        )
        image = Attention(
            np.zeros((1, 1, 3, 3)),
            np.eye(3)[None, None],
            scale=9.0,
            mask=np.zeros(3, bool),
            causal=True,
        )
        key = image.key.copy()
        key[0, 0, 2] = NAN
        image = Attention(image.query, key, 9.0, image.mask, None, True)
        # the text's scale 1, no mask, no order of the image's; row 1 is padding, key 2 is padding
        got = oracle.cross(text, image, rows=[[True, False]], keys=[[True, True, False]])
        close(got, [[[[0.75, 0.25, 0], [0, 0, 0]]]])

    def test_without_padding(self, rng):
        query, key = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 6, 5))
        a, b = (
            Attention(query, rng.normal(size=(2, 3, 4, 5))),
            Attention(rng.normal(size=(2, 3, 6, 5)), key),
        )
        expected = softmax(np.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(5), -1)
        close(oracle.cross(a, b), expected)

    def test_rows_reach_attention_kl(self, rng):
        query, key = rng.normal(size=(1, 1, 2, 3)), rng.normal(size=(1, 1, 4, 3))
        a = oracle.cross_attention(
            Attention(query, query), Attention(key, key), rows=[[True, False]], keys=np.ones((1, 4))
        )
        assert oracle.attention_kl(a, a)[1].tolist() == [[[True, False]]]

    def test_grouped_keys_are_an_error(self):
        a = Attention(np.zeros((1, 4, 2, 3)), np.zeros((1, 4, 2, 3)))
        b = Attention(np.zeros((1, 4, 5, 3)), np.zeros((1, 2, 5, 3)))
        with pytest.raises(ValueError, match="heads"):
            oracle.cross(a, b)


class TestDiDE:
    """One image key pair, one text of two rows of which the second is padding; all by hand."""

    def setup_method(self):
        # widths of 1: the scale is 1, a score is a product of two numbers
        def column(*numbers):
            return np.array(numbers)[None, None, :, None]

        # text queries over image keys (ln 3, 0): query 1 gives (3/4, 1/4), query 0 gives (1/2, 1/2)
        # image queries over text keys: (1, padding): always (1, 0) on both sides, loss 0
        self.teacher_text = column(1.0, 1.0), column(5.0, 100.0)
        self.teacher_image = column(1.0, 1.0), column(LOG3, 0.0)
        self.student_text = column(1.0, 0.0), column(2.0, -100.0)
        self.student_image = column(1.0, 1.0), column(LOG3, 0.0)
        self.keep = np.array([[True, False]])

    def loss(self):
        return oracle.dide_loss(
            self.student_text, self.student_image, self.teacher_text, self.teacher_image, self.keep
        )

    def test_all_rows_against_valid_rows(self):
        # text row 0: equal, 0; text row 1 (padding): 3/4 ln 3 - ln 2. Paper: mean over both rows.
        padded_row = 0.75 * LOG3 - LOG2
        close(self.loss(), padded_row / 2)
        # valid rows only: the first row alone
        student = oracle.cross_attention(
            Attention(*self.student_text), Attention(*self.student_image), rows=self.keep
        )
        teacher = oracle.cross_attention(
            Attention(*self.teacher_text), Attention(*self.teacher_image), rows=self.keep
        )
        values, counted = oracle.attention_kl(student, teacher)
        assert oracle.mean_per_row(values, counted) == 0
        everything = [oracle.cross_attention(Attention(*t), Attention(*i)) for t, i in self.sides()]
        values, counted = oracle.attention_kl(*everything)
        close(oracle.mean_per_row(values, counted), padded_row / 2)

    def sides(self):
        return (self.student_text, self.student_image), (self.teacher_text, self.teacher_image)

    def test_both_directions(self):
        # without padding image queries see text keys too: teacher e^5 : e^100, student e^2 : e^-100
        # p = (e^-95, 1), q = (1, e^-102): KL = ln(1 / e^-102) = 102 up to e^-95; both image rows alike
        self.keep = np.array([[True, True]])
        close(self.loss(), (0.75 * LOG3 - LOG2) / 2 + 102)

    def test_far_apart(self):
        # text rows equal, 0; image rows p = (e^-1900, 1), q = (1, e^-1900): KL = 1900
        self.keep = np.array([[True, True]])
        self.teacher_text = self.teacher_text[0], 20 * self.teacher_text[1].clip(0, 100)
        self.student_text = self.teacher_text[0], -self.teacher_text[1]
        close(self.loss(), 1900.0)  # scores 100 and 2000, then -100 and -2000: 1900 apart

    def test_scipy(self, rng):
        b, h, n, m = 2, 3, 4, 5
        st, tt = ((rng.normal(size=(b, h, n, d)), rng.normal(size=(b, h, n, d))) for d in (3, 6))
        si, ti = ((rng.normal(size=(b, h, m, d)), rng.normal(size=(b, h, m, d))) for d in (3, 6))
        keep = np.array([[True] * 4, [True, True, False, False]])

        def probabilities(query, key, kept):
            x = np.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[-1])
            return softmax(np.where(kept, x, -INF), -1)

        to_image = entropy(
            probabilities(tt[0], ti[1], True), probabilities(st[0], si[1], True), axis=-1
        )
        kept = keep[:, None, None, :]
        to_text = entropy(
            probabilities(ti[0], tt[1], kept), probabilities(si[0], st[1], kept), axis=-1
        )
        close(oracle.dide_loss(st, si, tt, ti, keep), to_image.mean() + to_text.mean())
