"""Attention: hand-computed blocks and crossings, masks of every kind, and its errors."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle

import pytest
import torch

from distillkit import Attention, errors, losses

E = math.e


def of_scores(*rows, **given):
    return Attention.from_scores(torch.tensor([[list(rows)]], dtype=torch.float64), **given)


def close(actual, expected):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype))


class TestBetween:
    def test_a_block_is_renormalised_over_its_own_scores(self):
        # keys 1 and 3 of row 0 score ln 1 and ln 3: 1/4 and 3/4, whatever keys 0 and 2 score
        attention = of_scores([9.0, 0.0, 5.0, math.log(3)], [0.0, 0.0, 0.0, 0.0])
        close(attention.between([0], [1, 3]).probabilities(), [[[[0.25, 0.75]]]])

    def test_it_is_not_a_slice_of_the_probabilities(self):
        attention = of_scores([2.0, 0.0, 0.0])
        assert not torch.isclose(
            attention.between([0], slice(1, 3)).probabilities()[..., 0],
            attention.probabilities()[..., 1],
        )

    def test_from_queries_and_keys_equals_from_scores(self):
        attention = Attention(
            torch.randn(2, 4, 5, 3), torch.randn(2, 2, 6, 3), bias=torch.randn(1, 4, 5, 6),
            mask=torch.rand(2, 1, 5, 6) > 0.3, rows=torch.rand(2, 5) > 0.3,
        )  # fmt: skip
        rows, keys = torch.tensor([4, 0, 2]), slice(1, 5)
        block = attention.between(rows, keys)
        scores = Attention.from_scores(attention.with_rows(None).scores(), rows=attention.rows)
        close(block.probabilities(), scores.between(rows, keys).probabilities())
        assert block.shape == (2, 4, 3, 4)
        assert torch.equal(block.key, attention.key[:, :, 1:5])

    def test_ragged_blocks_are_packed_and_their_padding_never_counts(self):
        scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])[:, None, None].expand(2, 1, 3, 3)
        text = torch.tensor([[True, False, True], [False, True, False]])
        block = Attention.from_scores(scores).between(text, text)
        assert block.shape == (2, 1, 2, 2)
        low, high = 1 / (1 + E**2), E**2 / (1 + E**2)
        close(
            block.probabilities()[:, 0],
            [[[low, high], [low, high]], [[1.0, 0.0], [0.0, 0.0]]],
        )
        expected = [[[True, True]], [[True, False]]]
        assert block.valid_rows().tolist() == expected
        assert block.with_rows(None).valid_rows().tolist() == expected

    def test_packing_keeps_the_order_of_many_tokens(self):
        chosen = torch.rand(2, 200) < 0.5
        position = torch.arange(200.0).expand(2, 1, 1, 200)
        block = Attention.from_scores(position).between([0], chosen)
        for row, own in zip(block.scores()[:, 0, 0], chosen, strict=True):
            close(row[row > -math.inf], own.nonzero()[:, 0])

    def test_causal_attention_keeps_its_positions(self):
        attention = Attention(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), causal=True)
        close(attention.between([1, 3], [0, 2]).probabilities(), [[[[1.0, 0.0], [0.5, 0.5]]]])

    def test_one_token(self):
        attention = Attention(
            torch.randn(1, 1, 1, 2), torch.randn(1, 1, 1, 2), mask=torch.ones(1, 1, 1, 1).bool()
        )
        assert attention.between([0, 0], [0, 0, 0]).probabilities().shape == (1, 1, 2, 3)
        assert attention.between(slice(0, 0), [0]).shape == (1, 1, 0, 1)


class TestCross:
    def test_by_hand_with_padding(self):
        text = Attention(
            torch.tensor([[[[1.0], [5.0]]]]), torch.tensor([[[[2.0], [9.0]]]]), scale=1.0
        )
        image = Attention(
            torch.tensor([[[[1.0], [0.0], [3.0]]]]),
            torch.tensor([[[[0.0], [1.0], [0.5]]]]),
            scale=1.0,
        )
        rows = torch.tensor([[True, False]])
        text_to_image = Attention.cross(text, image, rows=rows)
        weights = torch.tensor([1.0, E, E**0.5])  # exp(1 * (0, 1, 0.5))
        close(text_to_image.probabilities()[0, 0, 0], weights / weights.sum())
        assert text_to_image.valid_rows().tolist() == [[[True, False]]]
        image_to_text = Attention.cross(image, text, keys=rows)
        close(image_to_text.probabilities()[0, 0], [[1.0, 0.0]] * 3)

    def test_the_towers_own_masks_are_dropped_and_their_scale_is_the_querys(self):
        text = Attention(
            torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), scale=0.1,
            mask=torch.zeros(1, 1, 2, 2).bool(), causal=True,
        )  # fmt: skip
        image = Attention(torch.ones(1, 1, 3, 4), torch.randn(1, 1, 3, 4), scale=7.0)
        cross = Attention.cross(text, image)
        close(cross.scores(), 0.1 * image.key.sum(-1)[:, :, None].expand(1, 1, 2, 3))

    def test_heads_are_split_again(self):
        text, image = (
            Attention(torch.randn(1, h, 2, 12 // h), torch.randn(1, h, 2, 12 // h)) for h in (2, 3)
        )
        cross = Attention.cross(text, image, heads=4)
        joined = text.query.transpose(1, 2).flatten(2)
        close(cross.query[0, 1, 0], joined[0, 0, 3:6])
        assert cross.scale == 3**-0.5

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((1, 2, 3, 8), "heads=R re-splits"),
            ((1, 4, 3, 4), "heads=R re-splits"),
            ((2, 4, 3, 8), "take\\(index\\)"),
        ],
    )
    def test_unequal_towers_are_errors(self, shape, message):
        text = Attention(torch.randn(1, 4, 2, 8), torch.randn(1, 4, 2, 8))
        image = Attention(torch.randn(shape), torch.randn(shape))
        with pytest.raises(errors.ShapeError, match=message):
            Attention.cross(text, image)
        with pytest.raises(errors.ShapeError, match="does not split into 5 heads"):
            Attention.cross(text, text, heads=5)


class TestThrough:
    @staticmethod
    def captured(b, h, g, q, k, d=3, **given):
        drawn = torch.Generator().manual_seed(h * 100 + q * 10 + k)
        shapes = (b, h, q, d), (b, g, k, d)
        query, key = (torch.randn(*x, dtype=torch.float64, generator=drawn) for x in shapes)
        return Attention(query, key, **given)

    @staticmethod
    def by_loops(words, latents):
        """Of each row: its latents renormalised over those that see something, then weighed."""
        first, seen = words.probabilities(), latents.valid_rows()
        reads = latents.probabilities()
        b, h, q, m = words.shape
        expected = torch.zeros(b, h, q, latents.shape[3], dtype=torch.float64)
        for i, head, row in itertools.product(range(b), range(h), range(q)):
            alive = [j for j in range(m) if seen[i, :, j].any()]
            total = sum(first[i, head, row, j] for j in alive)
            for j in alive if total > 0 else []:
                heads = [one for one in range(latents.shape[1]) if seen[i, one, j]]
                mean = sum(reads[i, one, j] for one in heads) / len(heads)
                expected[i, head, row] += first[i, head, row, j] / total * mean
        return expected

    def test_it_is_the_product_of_both_with_padding_and_empty_rows(self):
        of_words = torch.ones(2, 1, 5, 4, dtype=torch.bool)
        of_words[0, :, 1] = False  # sees no latent
        of_words[1, :, 3, 1:] = False  # sees one, which sees nothing
        of_latents = torch.ones(2, 2, 4, 6, dtype=torch.bool)
        of_latents[0, ..., 4:] = False  # padding of the image
        of_latents[0, 1, 2] = False  # one head of a latent sees nothing
        of_latents[1, :, 0] = False  # no head of it
        rows = torch.tensor([[True] * 5, [True] * 4 + [False]])
        words = self.captured(2, 4, 2, 5, 4, mask=of_words, rows=rows)
        latents = self.captured(2, 2, 1, 4, 6, mask=of_latents)
        found = words.through(latents)
        assert found.shape == (2, 4, 5, 6)
        close(found.probabilities(), self.by_loops(words, latents))
        counted = [[True, False, True, True, True], [True, True, True, False, False]]
        assert found.valid_rows()[:, 0].tolist() == counted
        close(found.probabilities().sum(-1)[:, 0], torch.tensor(counted).double())
        assert not found.probabilities()[0, ..., 4:].any()
        assert torch.equal(found.rows, words.rows)

    def test_latents_that_do_not_count_are_left_out(self):
        words = Attention.from_probabilities(torch.tensor([[[[0.5, 0.25, 0.25]]]]))
        reads = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]]])
        latents = Attention.from_probabilities(reads, rows=torch.tensor([[True, True, False]]))
        close(words.through(latents).probabilities(), [[[[2 / 3, 1 / 3]]]])

    def test_a_latent_that_sees_nothing_takes_no_weight_from_the_others(self):
        words = Attention.from_scores(torch.tensor([[[[200.0, 0.0, 0.0]]]]))  # exp(-200) is 0
        reads = torch.tensor([[[[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]]]])
        found = words.through(Attention.from_probabilities(reads))
        close(found.probabilities(), [[[[0.75, 0.25]]]])

    def test_weights_that_add_up_to_less_are_renormalised(self):
        used = torch.tensor([[[[0.1, 0.3]]]])  # the rest went to a sink
        words = Attention.replayed(used.shape, used=lambda: used)
        latents = Attention.from_probabilities(torch.eye(2)[None, None])
        close(words.through(latents).probabilities(), [[[[0.25, 0.75]]]])

    def test_gradients_reach_both(self):
        words, latents = self.captured(1, 2, 1, 3, 4), self.captured(1, 2, 2, 4, 5)
        mask = torch.ones(1, 1, 4, 5, dtype=torch.bool)
        mask[..., 2, :] = False
        leaves = [words.query, words.key, latents.query, latents.key]

        def composed(query, key, of_latents, patches):
            through = Attention(of_latents, patches, mask=mask)
            return Attention(query, key, causal=True).through(through).probabilities()

        assert torch.autograd.gradcheck(composed, [x.requires_grad_() for x in leaves])
        assert words.through(latents).requires_grad
        assert not words.through(latents).detach().requires_grad

    def test_examples_are_taken_and_copied(self):
        words, latents = self.captured(3, 2, 1, 3, 4), self.captured(3, 1, 1, 4, 5)
        whole = words.through(latents)
        index = torch.tensor([2, 0])
        close(whole.take(index).probabilities(), whole.probabilities()[index])
        close(pickled(whole).probabilities(), whole.probabilities())

    def test_autocast_leaves_it_alone(self):
        words = self.captured(1, 2, 1, 3, 4).to(torch.float32)
        whole = words.through(self.captured(1, 1, 1, 4, 5).to(torch.float32))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = whole.probabilities()
        assert inside.dtype == torch.float32
        assert torch.equal(inside, whole.probabilities())

    @pytest.mark.parametrize("shape", [(2, 1, 3, 6), (1, 1, 4, 6)])
    def test_what_does_not_fit_is_refused(self, shape):
        words, latents = (Attention.from_scores(torch.zeros(x)) for x in ((2, 4, 5, 4), shape))
        with pytest.raises(errors.ShapeError) as raised:
            words.through(latents)
        assert "(2, 4, 5, 4)" in str(raised.value)
        assert str(shape) in str(raised.value)


class TestMasks:
    def test_additive_masks_drop_and_biases_add(self):
        bias = torch.tensor([0.0, -math.inf, torch.finfo(torch.float32).min, -100.0, math.log(2)])
        attention = Attention(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 5, 2), bias=bias)
        close(attention.probabilities()[0, 0, 0], [1 / 3, 0, 0, 0, 2 / 3])
        assert attention.keep().flatten().tolist() == [True, False, False, True, True]

    def test_a_row_without_keys_is_zero_and_not_valid(self):
        mask = torch.tensor([[True, True], [False, False]])
        attention = Attention(torch.randn(1, 2, 2, 3), torch.randn(1, 2, 2, 3), mask=mask)
        assert not attention.probabilities()[0, :, 1].any()
        assert attention.valid_rows().tolist() == [[[True, False]] * 2]

    def test_grouped_queries_read_the_key_head_of_their_group(self):
        query, key = torch.randn(2, 6, 3, 4), torch.randn(2, 2, 5, 4)
        grouped = Attention(query, key).scores()
        close(grouped, Attention(query, key.repeat_interleave(3, 1)).scores())
        heads = torch.rand(2, 6, 3, 5) > 0.5
        nan = torch.where(heads.unflatten(1, (2, 3)).any(2).any(-2)[..., None], key, torch.nan)
        close(
            Attention(query, nan, mask=heads).scores(), Attention(query, key, mask=heads).scores()
        )

    def test_probabilities_are_a_softmax(self):
        attention = Attention(torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5))
        close(attention.probabilities(), (attention.query @ attention.key.mT * 5**-0.5).softmax(-1))


class TestTakeAndConcatenate:
    def attention(self, mask_batch=3):
        return Attention(
            torch.randn(3, 2, 4, 5), torch.randn(3, 2, 6, 5), mask=torch.rand(mask_batch, 1, 1, 6) > 0.3,
            rows=torch.rand(3, 4) > 0.3,
        )  # fmt: skip

    @pytest.mark.parametrize("mask_batch", [1, 3])
    @pytest.mark.parametrize(
        "index", [torch.tensor([2, 0, 0, 1]), slice(1, 3), torch.tensor([True, False, True])]
    )
    def test_take_is_indexing(self, mask_batch, index):
        attention = self.attention(mask_batch)
        taken = attention.take(index)
        close(taken.probabilities(), attention.probabilities()[index])
        assert taken.shape == tuple(taken.probabilities().shape)
        scores = Attention.from_scores(attention.scores())
        close(scores.take(index).probabilities(), attention.probabilities()[index])

    def test_concatenate_undoes_take(self):
        attention = self.attention(1)
        parts = [attention.take(slice(0, 1)), attention.take(slice(1, 3))]
        close(Attention.concatenate(parts).probabilities(), attention.probabilities())
        replayed = [Attention.from_scores(part.scores()) for part in parts]
        close(Attention.concatenate(replayed).probabilities(), attention.probabilities())

    def test_a_part_without_a_mask_keeps_everything(self):
        masked, bare = self.attention(), Attention(torch.randn(2, 2, 4, 5), torch.randn(2, 2, 6, 5))
        biased = Attention(bare.query, bare.key, bias=torch.randn(1, 2, 1, 6))
        causal = Attention(torch.randn(1, 2, 4, 5), torch.randn(1, 2, 6, 5), causal=True)
        for parts in (
            [masked, bare, biased], [biased, masked], [bare, masked], [causal, masked], [bare, causal],
        ):  # fmt: skip
            joined = Attention.concatenate(parts)
            close(joined.probabilities(), torch.cat([part.probabilities() for part in parts]))
            assert torch.equal(joined.valid_rows(), torch.cat([p.valid_rows() for p in parts]))

        both = Attention.concatenate([causal, causal])
        assert (both.causal, both.mask) == (True, None)

    def test_what_is_replayed_is_concatenated(self):
        given = torch.rand(3, 2, 4, 6).softmax(-1)
        kinds = {
            "scores": Attention.from_scores(given.log()),
            "probabilities": Attention.from_probabilities(given),
            "computed": Attention.replayed(given.shape, scores=lambda: given.log()),
        }
        for one in kinds.values():
            for other in kinds.values():
                close(
                    Attention.concatenate([one, other]).probabilities(), torch.cat([given, given])
                )
        used = Attention.replayed(given.shape, used=lambda: 0.5 * given)
        close(Attention.concatenate([used, used]).probabilities(), torch.cat([given, given]) / 2)
        with pytest.raises(
            errors.ShapeError, match="these are by used, scores. Attention.from_scores"
        ):
            Attention.concatenate([used, kinds["scores"]])
        plain = self.attention()
        capped = Attention.replayed(
            plain.shape, scores=plain.scores().tanh, query=plain.query, key=plain.key
        )
        with pytest.raises(errors.ShapeError, match="these are by queries and keys, scores"):
            Attention.concatenate([plain, capped])

    def test_concatenate_refuses_what_does_not_fit(self):
        with pytest.raises(errors.ShapeError, match="share heads, tokens and scale"):
            Attention.concatenate([self.attention(), self.attention().between([0], [1])])
        with pytest.raises(errors.ShapeError, match="no attentions to concatenate"):
            Attention.concatenate([])
        grouped = Attention(torch.randn(1, 2, 4, 5), torch.randn(1, 1, 6, 5))
        with pytest.raises(
            errors.ShapeError, match=r"the keys .* one size; got \(3, 2, 6, 5\), \(1, 1"
        ):
            Attention.concatenate([self.attention(), grouped])
        query, key = torch.randn(1, 2, 4, 5), torch.randn(1, 2, 6, 5)
        with pytest.raises(errors.ShapeError, match="hold values, others none"):
            Attention.concatenate([Attention(query, key, key), Attention(query, key)])


def saved(x):
    stream = io.BytesIO()
    torch.save(x, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def pickled(x):
    return pickle.loads(pickle.dumps(x))


def every_kind():
    """Attentions known in every way, as what makes them from leaves that ask for gradients."""
    torch.manual_seed(0)
    query, key = (torch.randn(2, 4, 3, 8, requires_grad=True) for _ in "qk")
    mask, rows = torch.rand(2, 1, 1, 3) > 0.3, torch.tensor([[True, True, False]] * 2)
    plain = Attention(query * 1, key * 1, key * 2, mask=mask, rows=rows, bias=torch.randn(4, 3, 3))
    scores = plain.with_rows(None).scores()

    def used():
        return 0.5 * scores.softmax(-1).nan_to_num()

    return {
        "plain": plain,
        "causal": Attention(query * 1, key * 1, causal=True),
        "scores": Attention.from_scores(scores, mask=mask, rows=rows),
        "probabilities": Attention.from_probabilities(plain.probabilities(), rows=rows),
        "replayed": Attention.replayed(scores.shape, scores=lambda: scores.tanh(), query=query * 1),
        "used": Attention.replayed(scores.shape, used=used, mask=mask, rows=rows),
        "block": Attention.from_scores(scores).between([0, 2], [1, 2]),
    }


def same(ours, expected):
    assert (ours.shape, ours.causal) == (expected.shape, expected.causal)
    assert ours.scale == expected.scale or math.isnan(ours.scale) == math.isnan(expected.scale)
    assert ours.is_replayed == expected.is_replayed
    for name in ("scores", "probabilities", "valid_rows", "keep"):
        one, other = getattr(ours, name)(), getattr(expected, name)()
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0)


class TestCopies:
    @pytest.mark.parametrize("kind", every_kind())
    @pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickled, saved])
    def test_all_is_equal(self, make, kind):
        attention = every_kind()[kind]
        made = make(attention)
        same(made, attention)
        same(make(made), attention)
        assert made.requires_grad == (make is copy.copy)
        assert attention.requires_grad
        both = Attention.concatenate([made, make(attention)])  # a scale of NaN equals no other
        same(both.take(slice(2, 4)), attention)

    def test_probabilities_stay_what_is_known(self):
        weights = torch.tensor([[[[0.7, -0.2]]]])
        made = pickled(Attention.from_probabilities(weights))
        with pytest.raises(errors.CaptureError, match="negative weights"):
            made.scores()
        used = pickled(Attention.replayed((1, 1, 1, 2), used=lambda: weights))
        close(used.probabilities(), weights)

    def test_an_example_brings_its_own_share_of_the_batch(self):
        attention = Attention(torch.randn(64, 2, 3, 8), torch.randn(64, 2, 3, 8))
        assert len(pickle.dumps(attention.take(slice(5, 6)))) < 2000  # of 24576 bytes


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


class TestMoves:
    @pytest.mark.parametrize("kind", every_kind())
    def test_to_another_dtype(self, kind):
        attention = every_kind()[kind].detach()
        moved = attention.to(torch.float64)
        assert moved.scores().dtype == moved.probabilities().dtype == torch.float64
        assert (moved.mask is None) == (attention.mask is None)
        torch.testing.assert_close(moved.probabilities().float(), attention.probabilities())
        assert torch.equal(moved.valid_rows(), attention.valid_rows())

    @pytest.mark.parametrize("kind", every_kind())
    def test_to_another_device(self, kind):
        attention = every_kind()[kind]
        moved = attention.to("meta", non_blocking=True)
        tensors = [moved.mask, moved.rows, moved.bias, moved.value]
        assert {x.device.type for x in tensors if x is not None} <= {"meta"}
        assert moved.device.type == "meta"
        assert attention.device.type == "cpu"
        assert moved.shape == attention.shape

    def test_what_is_replayed_is_moved_when_it_is_computed(self):
        calls = []
        attention = Attention.replayed(
            (1, 1, 2, 2), scores=lambda: calls.append(1) or torch.zeros(1, 1, 2, 2)
        )
        moved = attention.to(torch.float64).detach()
        assert calls == []
        assert moved.scores().dtype == torch.float64

    @pytest.mark.parametrize("of", ["bias", "scores"])
    @pytest.mark.parametrize("dtypes", list(itertools.permutations(DTYPES, 2)))
    def test_what_was_dropped_stays_dropped_and_nothing_else_is(self, of, dtypes):
        own, other = dtypes
        # the dtype's lowest number drops; what is far below all others, but above its half, does not
        low = torch.finfo(own).min
        added = torch.tensor([[[[0.0, low, 0.4 * low, -torch.inf]]]], dtype=own)
        if of == "bias":
            zeros = torch.zeros(1, 1, 4, 2, dtype=own)
            attention = Attention(zeros[:, :, :1], zeros, bias=added)
        else:
            attention = Attention.from_scores(added)
        expected = [True, False, True, False]
        assert attention.keep().flatten().tolist() == expected
        assert attention.to(other).keep().flatten().tolist() == expected
        close(attention.to(other).probabilities()[0, 0, 0], [1, 0, 0, 0])

    def test_to_refuses_integers(self):
        with pytest.raises(errors.OptionError, match="floating point"):
            every_kind()["plain"].to(torch.int64)


class TestInferenceMode:
    def test_tensors_are_copied_outside_of_it(self):
        with torch.inference_mode():
            kinds = every_kind()
            assert all(one.trackable() is one for one in kinds.values())
        for attention in kinds.values():
            made = attention.trackable()
            same(made, attention)
            tensors = [made.mask, made.rows, made.bias, made.value, made.scores()]
            assert not any(x.is_inference() for x in tensors if x is not None)
            assert made.trackable() is made

    def test_without_any_it_is_itself(self):
        attention = every_kind()["plain"]
        assert attention.trackable() is attention

    def test_replayed_scores_are_copied_when_they_are_computed(self):
        with torch.inference_mode():
            scores = torch.zeros(1, 1, 2, 2)
        attention = Attention.replayed((1, 1, 2, 2), scores=lambda: scores)
        assert attention.trackable() is attention
        assert not attention.scores().is_inference()


class TestKnownByScoresOrProbabilities:
    def test_round_trip(self):
        probabilities = torch.tensor([[[[0.25, 0.0, 0.75]]]], requires_grad=True)
        attention = Attention.from_probabilities(probabilities)
        close(attention.probabilities(), probabilities)
        assert attention.requires_grad
        assert not attention.detach().requires_grad
        attention.probabilities()[..., 0].sum().backward()
        assert probabilities.grad.isfinite().all()

    @pytest.mark.parametrize("what", ["query", "key"])
    def test_queries_and_keys_are_not_known(self, what):
        with pytest.raises(errors.CaptureError, match="holds no"):
            getattr(of_scores([0.0, 1.0]), what)


class TestBadInput:
    @pytest.mark.parametrize(
        ("query", "key", "message"),
        [
            ((2, 3, 4), (2, 3, 4), "4 axes each"),
            ((2, 3, 4, 5), (1, 3, 4, 5), "share b and d"),
            ((2, 3, 4, 5), (2, 3, 4, 6), "share b and d"),
            ((2, 3, 4, 5), (2, 2, 4, 5), "must divide"),
        ],
    )
    def test_shapes(self, query, key, message):
        with pytest.raises(errors.ShapeError, match=message):
            Attention(torch.zeros(query), torch.zeros(key))

    def test_dtypes(self):
        whole = torch.zeros(1, 1, 2, 2)
        with pytest.raises(errors.ShapeError, match="floating point"):
            Attention(whole.long(), whole)
        with pytest.raises(errors.ShapeError, match="additive masks are `bias`"):
            Attention(whole, whole, mask=torch.zeros(2, 2))
        with pytest.raises(errors.ShapeError, match="rows is boolean"):
            Attention(whole, whole, rows=torch.ones(1, 3, dtype=torch.bool))
        with pytest.raises(errors.ShapeError, match=r"mask of shape \(3, 2\) does not broadcast"):
            Attention(whole, whole, mask=torch.ones(3, 2, dtype=torch.bool))
        with pytest.raises(errors.ShapeError, match="an attention map is"):
            Attention.from_scores(torch.zeros(2, 2))


class TestReplays:
    """What is replayed from a model is computed once, and keeps what is known beside it."""

    @pytest.fixture
    def counted(self):
        """A replayed attention and the list that grows with every replay."""
        scores, replays = torch.randn(2, 2, 3, 4, requires_grad=True), []

        def replay():
            replays.append(1)
            return scores * 1

        return Attention.replayed(scores.shape, scores=replay), replays, scores

    def test_a_question_and_its_answer_are_one_replay(self, counted):
        attention, replays, _ = counted
        assert attention.requires_grad
        assert attention.valid_rows().all()
        assert attention.requires_grad
        attention.scores()
        assert len(replays) == 1
        attention.valid_rows()
        assert len(replays) == 1
        attention.scores()  # nothing of queries x keys is held once it was asked for
        assert len(replays) == 2

    @pytest.mark.parametrize("loss", [losses.attention_kl, losses.attention_mse])
    def test_an_attention_beside_itself_is_replayed_once(self, counted, loss):
        attention, replays, _ = counted
        assert loss(attention, attention).abs().max() < 1e-6
        assert len(replays) == 1

    def test_a_loss_replays_each_side_once(self, counted):
        attention, replays, scores = counted
        teacher = Attention.from_scores(torch.randn(2, 2, 3, 4))
        assert attention.requires_grad
        losses.attention_kl(attention, teacher).sum().backward()
        assert len(replays) == 1
        assert scores.grad is not None

    def test_what_was_looked_at_without_gradient_is_no_answer(self, counted):
        attention, _, _ = counted
        with torch.no_grad():
            attention.valid_rows()
        assert attention.scores().requires_grad

    @pytest.mark.parametrize("kind", every_kind())
    def test_a_block_keeps_what_is_known(self, kind):
        attention = every_kind()[kind]
        query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 3, 8)
        if attention.is_replayed:
            attention = Attention.replayed(
                attention.shape, scores=attention.scores, query=query, key=key, value=key
            )
        block = attention.between([0, 2], [1])
        assert torch.equal(block.query, attention.query[:, :, [0, 2]])
        assert torch.equal(block.key, attention.key[:, :, [1]])
        if attention.value is not None:
            assert torch.equal(block.value, attention.value[:, :, [1]])

    @pytest.mark.parametrize("both", [True, False])
    def test_one_way_to_replay(self, both):
        functions = dict.fromkeys(("scores", "used"), lambda: torch.zeros(1, 1, 2, 2))
        with pytest.raises(errors.OptionError, match="one of two functions"):
            Attention.replayed((1, 1, 2, 2), **functions if both else {})


def test_nan_of_a_broken_model_is_not_taken_for_a_dropped_key():
    query, key = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 3, 4)
    query[0, 0, 0] = torch.nan
    mask = torch.tensor([[[[True, True, False]]]])
    found = Attention(query, key, mask=mask).probabilities()[0, 0]
    assert found[0, :2].isnan().all()
    assert found[:, 2].tolist() == [0, 0]
    assert found[1].tolist() == [0.5, 0.5, 0]
