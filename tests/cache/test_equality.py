"""A run with a cache equals the run with the teacher."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

import distillkit as dk
from distillkit.errors import CacheError
from tests.support import cached, tiny
from tests.support.cached import ATTENTION, LOGITS, collate, distiller_of, recipe_of

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
PROJECTED = {
    "loss": "mse", "on": "logits", "name": "projected",
    "align": [{"name": "projector"}],
}  # fmt: skip
RECIPES = {
    "dide": "dide",
    "dide without logits": "dide_attention",
    "one direction": "dide_text_to_image",
    "all layers": recipe_of({**ATTENTION, "layers": "all"}),
    "pairs of layers": recipe_of({**ATTENTION, "layers": [[0, 1], [-1, 0]]}),
    "relative depths": recipe_of({**ATTENTION, "layers": [[0.0, 1.0]]}),
    "the mean of a group": recipe_of({**ATTENTION, "layers": [[1, [0, 1]]]}),
    "the best of a group": recipe_of(
        {"loss": "mse", "on": "hidden.image", "layers": {"pairs": [[1, [0, 1]]], "match": "best"}}
    ),
    "rows": recipe_of({**ATTENTION, "per": "row"}),
    "logits by other losses": recipe_of(
        LOGITS,
        {"loss": "mse", "on": "logits"},
        {"loss": "kl_divergence", "on": "logits", "options": {"temperature": 4.0}, "name": "soft"},
        {"loss": "rkd_distance", "on": "logits"},
    ),
    "entries of the batch": recipe_of(
        {**ATTENTION, "mask": "words"},
        {"loss": "decoupled_kl_divergence", "on": "logits", "inputs": {"labels": "labels"}},
    ),
    "whole blocks": recipe_of({"loss": "attention_mse", "on": "attention.text"}),
    "relations": recipe_of(
        *(
            {
                "loss": "relation_kl",
                "on": "attention.text",
                "options": {"of": of, "relation_heads": 2},
                "name": of,
            }
            for of in ("query", "key", "value")
        )
    ),
    "hidden states": recipe_of(
        {"loss": "cosine_distance", "on": "hidden.text"},
        {"loss": "mse", "on": "hidden.image", "layers": "all"},
        {"loss": "mse", "on": "hidden.text", "per": "row", "layers": [[0, 1]], "name": "rows"},
    ),
    "embeddings": recipe_of(
        {"loss": "mse", "on": "embedding.text"},
        {"loss": "normalized_mse", "on": "embedding.image"},
    ),
    "weights of tokens": recipe_of(
        {"loss": "mse", "on": "hidden.text", "token_weights": "attention.text"},
        {
            "loss": "cosine_distance",
            "on": "hidden.text",
            "layers": "all",
            "token_weights": {"signal": "attention.text", "layer": 0, "query": 0},
        },
        {"loss": "relation_cosine_distance", "on": "hidden.text"},
    ),
    "heads": recipe_of(
        {
            "loss": "attention_mse",
            "on": "attention.text",
            "align": [{"name": "head_map", "student_heads": 4, "teacher_heads": 4}],
        }
    ),
    "what is learned": recipe_of(
        {**ATTENTION, "learn": {"temperature": 0.5}},
        {**LOGITS, "learn": {"temperature": {"start": 3.0, "reverse": True}}},
    ),
    "a schedule": recipe_of({**ATTENTION, "weight": {"start": 4.0, "stop": 1.0}}, LOGITS),
}

OF_TOWERS = {
    "weights of tokens",
    "heads",
    "whole blocks",
    "relations",
    "hidden states",
    "embeddings",
    "the best of a group",
}


def teacher_for(name):
    return cached.teacher(model=tiny.Dual if name in OF_TOWERS else tiny.Fusion)


@pytest.mark.parametrize("name", RECIPES)
def test_losses_parts_counts_and_gradients_are_those_of_the_teacher(name, tmp_path):
    """In another order, in batches of other sizes, with other padding than at filling."""
    some = cached.examples()
    taught = teacher_for(name)
    cache = cached.filled(tmp_path, RECIPES[name], some, taught=taught)
    changes = {"ignore": ["labels", "id", "words"]}
    ran, read = (distiller_of(one, RECIPES[name], **changes) for one in (taught, cache))
    shuffled = [some[i] for i in (5, 2, 0, 3, 1, 4)]
    for batch in (
        *cached.in_batches(shuffled, 2), collate(shuffled[:5]), collate(shuffled, 9), collate(some[:1])
    ):  # fmt: skip
        batch["words"] = batch["ids"] % 2 == 0
        results = [one(batch, progress=0.25) for one in (ran, read)]
        for one, result in zip((ran, read), results, strict=True):
            one.zero_grad()
            result.loss.backward()
        for field in ("parts", "counts"):
            given, expected = (getattr(result, field) for result in reversed(results))
            torch.testing.assert_close(given, expected, **CLOSE)
        torch.testing.assert_close(results[1].loss, results[0].loss, **CLOSE)
        torch.testing.assert_close(
            cached.gradients(read), cached.gradients(ran), rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize(
    ("layers", "stored"),
    [([[0.0, 0.4]], (1,)), ([[0, [0, 2]]], (0, 2)), ("middle", (1, 2)), ("uniform", (0, 1, 2, 3))],
)
def test_layers_by_relative_depth_are_those_of_the_teachers_depth(layers, stored, tmp_path):
    taught = cached.teacher()
    taught.model.encoder = tiny.Encoder(depth=4)
    recipe = recipe_of({**ATTENTION, "layers": layers})
    cache = cached.filled(tmp_path, recipe, cached.examples(), taught=taught)
    (signal,) = cache.header.signals
    assert (signal.depth, signal.layers) == (4, stored)
    cache.check(recipe)
    lacking = [layer for layer in range(4) if layer not in stored]
    for layer in lacking:
        with pytest.raises(CacheError, match=rf"layers \[{layer}\]"):
            cache.check(recipe_of({**ATTENTION, "layers": [[0, layer]]}))


def trained(taught, recipe, batches, **changes):
    distiller = distiller_of(taught, recipe, **changes).train()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    losses = []
    for i, batch in enumerate(batches):
        result = distiller(batch, progress=i / len(batches))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.loss.detach())
    return torch.stack(losses), distiller.state_dict()


def test_a_whole_training_ends_at_the_same_weights(tmp_path):
    some = cached.examples(12)
    taught = cached.teacher()
    terms = recipe_of(
        LOGITS,
        {**ATTENTION, "layers": "all", "weight": {"start": 2.0, "stop": 0.5}},
        PROJECTED,
        {"loss": "task"},
    )
    cache = cached.filled(tmp_path, terms, some, taught=taught)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3)) % 12
    batches = cached.in_batches([some[i] for i in order], 5, length=6)

    def loss(output, batch):
        return F.cross_entropy(output.logits, batch["labels"])

    changes = {"example": collate(some[:2]), "task_loss": loss}
    ran = trained(taught, terms, batches, **changes)
    read = trained(cache, terms, batches, **changes)
    torch.testing.assert_close(read, ran, rtol=1e-4, atol=1e-6)
    assert ran[0][-4:].mean() < ran[0][:4].mean()


def test_padded_rows_count_as_they_did_when_the_cache_was_filled(tmp_path):
    """rows = "all" asks for the teacher's padded positions: they are stored as they were."""
    recipe = recipe_of({**ATTENTION, "rows": "all"})
    some = cached.examples()
    taught = cached.teacher()
    cache = cached.filled(tmp_path, recipe, some, size=3, taught=taught, inputs=("pixels",))
    batches = cached.in_batches(some, 3)
    for batch in batches:
        ran, read = (distiller_of(one, recipe)(batch) for one in (taught, cache))
        torch.testing.assert_close(read.loss, ran.loss, **CLOSE)
        torch.testing.assert_close(read.counts, ran.counts)
    valid = distiller_of(taught, recipe_of(ATTENTION))(batches[0])
    assert not torch.isclose(valid.loss, distiller_of(cache, recipe)(batches[0]).loss)


def test_padded_rows_may_come_after_a_batch_without_padding(tmp_path):
    recipe = recipe_of({**ATTENTION, "rows": "all"})
    some = cached.examples(8)
    taught = cached.teacher()
    batches = [collate([some[3], some[7]]), collate(some[:3], 5)]
    cache = dk.SignalCache(tmp_path, recipe)
    cache.fill(taught, batches, progress=False)
    for batch in batches:
        ran, read = (distiller_of(one, recipe)(batch) for one in (taught, cache))
        torch.testing.assert_close(read.loss, ran.loss, **CLOSE)


def test_padded_rows_of_another_length_or_side_are_refused(tmp_path):
    """They would be taken for rows that nobody kept, in silence."""
    recipe = recipe_of({**ATTENTION, "rows": "all"})
    some = cached.examples(8)
    cache = dk.SignalCache(tmp_path, recipe)
    cache.fill(cached.teacher(), [collate(some[:4], 5), collate(some[4:], 7)], progress=False)
    distiller = distiller_of(cache, recipe)
    both = collate([some[0], some[4]], 7)
    for read in (cache.signals, distiller):
        with pytest.raises(CacheError, match=r"'attention.text_to_image' .* of 5 and 7 tokens; "
                           r"rows = \"all\" counts padding: .*padding='max_length'"):  # fmt: skip
            read(both)
    with pytest.raises(CacheError, match="of 5 and 7 tokens"):
        cache.signals(["x0", "x4"])
    with pytest.raises(CacheError, match="of 5 tokens, and the batch has 7; rows"):
        cache.signals(collate(some[:4], 7))
    with pytest.raises(CacheError, match="padding, which is elsewhere in 'mask' of the batch"):
        cache.signals(collate(some[:4], 5, left=True))
    cache.signals(collate(some[:2], 5))
    assert cache.signals({"id": [], **{k: x[:0] for k, x in both.items() if k != "id"}})


def test_the_first_batch_need_not_have_padding(tmp_path):
    """Nor need the number of words differ from that of patches, which is 4."""
    some = cached.examples(8)
    taught = cached.teacher()
    cache = dk.SignalCache(tmp_path, "dide")
    alone = [collate([some[2]]), collate([some[6]]), *(collate([one]) for one in some)]
    assert alone[0]["ids"].shape == (1, 4)
    cache.fill(taught, alone, progress=False)
    ran, read = (distiller_of(one, "dide")(collate(some)) for one in (taught, cache))
    torch.testing.assert_close(read.parts, ran.parts, **CLOSE)


@pytest.mark.parametrize("left", [False, True])
def test_padding_may_be_on_the_other_side(left, tmp_path):
    some = cached.examples()
    taught = cached.teacher()
    cache = dk.SignalCache(tmp_path, "dide")
    cache.fill(taught, cached.in_batches(some, 3, left=not left), progress=False)
    batch = collate(some[:4], 7, left=left, fill=3)
    given = cache.signals(batch)
    expected = taught.signals(batch)
    for name in ("attention.text_to_image", "attention.image_to_text"):
        torch.testing.assert_close(
            given[name][-1].probabilities(), expected[name][-1].probabilities()
        )
        torch.testing.assert_close(given[name][-1].valid_rows(), expected[name][-1].valid_rows())


class Sinks(tiny.EagerAttention):
    """Heads of unequal scale, soft-capped: queries and keys do not say the scores."""

    def forward(self, x, mask):
        q, k, v = self.heads(x)
        scores = 3 * torch.tanh(q @ k.transpose(-1, -2) / 6)
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(x.dtype).min)
        self.weights = scores.softmax(-1)
        return self.out((self.weights @ v).transpose(1, 2).flatten(2))


ANY = [
    (attention, dtype)
    for attention in (tiny.FusedAttention, tiny.EagerAttention, Sinks)
    for dtype in (torch.float32, torch.float64, torch.bfloat16)
    # whose additive mask is float32
    if (attention, dtype) != (tiny.EagerAttention, torch.float64)
]


@pytest.mark.parametrize(("attention", "dtype"), ANY)
def test_teachers_of_any_attention_and_dtype(attention, dtype, tmp_path):
    some = cached.examples()
    taught = cached.teacher(attention=attention)
    taught.model.to(dtype)
    for one in some:
        one["pixels"] = one["pixels"].to(dtype)
    cache = cached.filled(tmp_path, "dide", some, taught=taught)
    if attention is Sinks:
        assert {one.form for one in cache.header.signals} == {"tensor", "log_probabilities"}
    batch = collate(some, 7)
    expected, given = taught.signals(batch), cache.signals(batch)
    assert given["logits"].dtype == dtype
    close = {"rtol": 3e-2, "atol": 3e-2} if dtype == torch.bfloat16 else CLOSE
    torch.testing.assert_close(given["logits"], expected["logits"], **close)
    for name in ("attention.text_to_image", "attention.image_to_text"):
        torch.testing.assert_close(
            given[name][-1].probabilities(), expected[name][-1].probabilities(), **close
        )


def test_several_recipes_share_a_cache(tmp_path):
    some = cached.examples()
    taught = cached.teacher()
    recipes = ["dide", RECIPES["rows"], recipe_of({**ATTENTION, "layers": [[0, 0]]})]
    cache = cached.filled(tmp_path, recipes, some, taught=taught)
    for recipe in recipes:
        ran, read = (distiller_of(one, recipe)(collate(some)) for one in (taught, cache))
        torch.testing.assert_close(read.parts, ran.parts, **CLOSE)
    dk.SignalCache(tmp_path, recipes)


@pytest.mark.parametrize("name", RECIPES)
def test_a_cache_opens_with_the_recipe_that_it_was_filled_for(name, tmp_path):
    cached.filled(tmp_path, RECIPES[name], cached.examples(2), taught=teacher_for(name))
    assert len(dk.SignalCache(tmp_path, RECIPES[name])) == 2


def test_check_normalizer_and_run_teacher_are_those_of_the_teacher(tmp_path):
    recipe = recipe_of({**ATTENTION, "per": "row"}, LOGITS, PROJECTED)
    some = cached.examples()
    taught = cached.teacher()
    cache = cached.filled(tmp_path, recipe, some, taught=taught)
    changes = {"example": collate(some[:2])}
    ran, read = (distiller_of(one, recipe, **changes) for one in (taught, cache))
    batches = cached.in_batches(some, 4)
    torch.testing.assert_close(read.normalizer(batches), ran.normalizer(batches))
    for one, other in zip(read.check(batches[0]).terms, ran.check(batches[0]).terms, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-5)
        assert not one.problems
    assert not read.check(batches[0]).problems
    given, expected = (one.run_teacher(batches[1]) for one in (read, ran))
    torch.testing.assert_close(given["logits"], expected["logits"])
    normalizer = read.normalizer(batches)
    parts = sum(read(batch, normalizer=normalizer).loss for batch in batches)
    torch.testing.assert_close(parts, ran(collate(some, 5)).loss, rtol=1e-5, atol=1e-6)


def test_eval_mode_keywords_and_entries_that_only_the_cache_reads(tmp_path):
    some = cached.examples()
    cache = cached.filled(tmp_path, "dide", some)
    distiller = distiller_of(cache, "dide", ignore=["labels"]).train()
    batch = collate(some[:3])
    by_name = distiller(**batch)
    assert torch.equal(by_name.loss, distiller(batch).loss)
    with torch.no_grad():
        torch.testing.assert_close(distiller.eval()(batch).loss, by_name.loss)
    with torch.inference_mode():
        torch.testing.assert_close(distiller(batch).loss, by_name.loss)
    distiller.train()
    with pytest.raises(dk.errors.SignalError, match="'idd'"):
        distiller({**batch, "idd": torch.zeros(3)})
    with pytest.raises(dk.errors.SignalError, match="'unused_mask'"):
        distiller({**batch, "unused_mask": torch.ones(3, 5).bool()})


def test_copies_and_pickles_of_a_distiller_read_the_same_cache(tmp_path):
    some = cached.examples()
    cache = cached.filled(tmp_path, "dide", some)
    distiller = distiller_of(cache, "dide")
    batch = collate(some)
    expected = distiller(batch).loss
    for one in (copy.deepcopy(distiller), pickle.loads(pickle.dumps(distiller))):
        assert torch.equal(one(batch).loss, expected)
        assert one.teacher is None


@pytest.mark.parametrize("workers", [0, 2])
def test_signals_come_with_the_batches_of_a_loader(workers, tmp_path):
    some = cached.examples(8)
    taught = cached.teacher()
    recipe = recipe_of(LOGITS, {**ATTENTION, "layers": [[0, 1]]})
    cache = cached.filled(tmp_path, recipe, some, taught=taught)
    loader = torch.utils.data.DataLoader(
        some, batch_size=3, num_workers=workers, collate_fn=cache.joining(collate)
    )
    alone, ran = distiller_of(None, recipe), distiller_of(taught, recipe)
    batches = list(loader)
    assert len(batches) == 3
    for batch in batches:
        plain = {name: x for name, x in batch.items() if name != "teacher_signals"}
        expected = ran(plain)
        result = alone(batch)
        torch.testing.assert_close(result.parts, expected.parts, **CLOSE)
        torch.testing.assert_close(alone(**batch).loss, result.loss)
        torch.testing.assert_close(alone.normalizer([batch]), ran.normalizer([plain]))
        assert alone.check(batch).terms[0].value == pytest.approx(
            float(expected.parts[LOGITS_NAME])
        )


LOGITS_NAME = "kl_divergence/logits"


def test_only_some_signals_are_joined(tmp_path):
    cache = cached.filled(tmp_path, "dide", cached.examples())
    batch = cache.joining(collate, "logits")(cached.examples()[:2])
    assert list(batch["teacher_signals"]) == ["logits"]
    with pytest.raises(dk.errors.UnknownNameError, match="did you mean 'logits'"):
        cache.joining(collate, "logit")(cached.examples()[:2])
