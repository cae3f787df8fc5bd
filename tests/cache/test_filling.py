"""Filling a cache: what is stored, skipped, refused, and given back as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import distillkit as dk
from distillkit._cache.store import Store
from distillkit.errors import CacheError, OptionError, SignalError
from tests.support import cached, tiny
from tests.support.cached import ATTENTION, LOGITS, collate, recipe_of

RECIPE = recipe_of(LOGITS, ATTENTION)


def fill(cache, batches, taught=None, **changes):
    return cache.fill(taught or cached.teacher(), batches, progress=False, **changes)


def counting(taught):
    """How many examples the teacher ran on."""
    ran = []
    taught.model.register_forward_pre_hook(
        lambda _, args, kwargs: ran.append(len(kwargs["ids"])), with_kwargs=True
    )
    return ran


def test_what_is_there_is_not_computed_again(tmp_path):
    some = cached.examples(9)
    taught = cached.teacher()
    cache = dk.SignalCache(tmp_path, RECIPE)
    assert cache.missing(["x0", "x8"]) == ["x0", "x8"]
    first = fill(cache, cached.in_batches(some[:6], 3), taught)
    assert first[:2] == (6, 0)
    assert first.bytes == sum(one.stat().st_size for one in tmp_path.glob("*.safetensors"))
    assert len(cache) == 6
    assert "x0" in cache
    assert "x8" not in cache
    assert 0 not in cache
    assert cache.missing(["x0", "x8", "x7"]) == ["x8", "x7"]
    ran = counting(taught)
    again = dk.SignalCache(tmp_path, RECIPE)
    assert fill(again, cached.in_batches(some[:6], 2), taught)[:3] == (0, 6, 0)
    assert ran == []
    assert fill(again, cached.in_batches(some, 3), taught)[:2] == (3, 6)
    assert sum(ran) == 6  # the first new batch is run twice, to see whether it repeats itself
    assert len(cache.shards) == len(again.shards) - 1
    assert cache.signals(collate(some))["logits"].shape == (9, 3)  # it looks again by itself


def test_an_example_that_comes_twice_is_stored_once(tmp_path):
    some = cached.examples(3)
    cache = dk.SignalCache(tmp_path, RECIPE)
    assert fill(cache, [collate([some[0], some[1], some[0]]), collate(some)])[:2] == (3, 3)
    assert len(cache) == 3


@pytest.mark.parametrize("together", [True, False])
def test_a_key_that_several_examples_share_is_refused(together, tmp_path):
    some = cached.examples(4)
    some[3]["id"] = "x1"
    batches = cached.in_batches(some, 4 if together else 2)
    with pytest.raises(CacheError, match=r"'ids' is not what .*share an id.*\"question_id\""):
        fill(dk.SignalCache(tmp_path, RECIPE), batches)


def test_several_entries_tell_examples_apart_together(tmp_path):
    batch = collate(cached.examples(4))
    batch["id"], batch["question"] = ["a", "a", "b", "b"], torch.tensor([0, 1, 0, 1])
    cache = dk.SignalCache(tmp_path, RECIPE)
    fill(cache, [batch], key=("id", "question"))
    assert ("a", 1) in cache
    assert ("a", 2) not in cache
    assert cache.missing([("b", 0), ("c", 0)]) == [("c", 0)]
    part = {name: x[1:3] for name, x in batch.items()}
    expected = cached.teacher().signals(batch)["logits"][1:3]
    torch.testing.assert_close(cache.signals(part)["logits"], expected)
    with pytest.raises(CacheError, match=r"\('id', 'question'\) together: pass a mapping"):
        cache.signals(["a", "b"])
    with pytest.raises(SignalError, match="'id', 'question'.* are of 2, 1 examples"):
        cache.signals({"id": ["a", "b"], "question": [0]})
    with pytest.raises(CacheError, match=r"told apart by \('id', 'question'\) together"):
        _ = "a" in cache


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ([0.5, 1.5], "a whole number or a text for each example; got list"),
        (torch.rand(2), "a whole number or a text for each example; got Tensor"),
        ("ab", "a whole number or a text for each example; got str"),
        (None, "finds examples by the entry 'id': .*key=\"question_id\""),
    ],
)
def test_a_key_is_a_number_or_a_text(key, said, tmp_path):
    with pytest.raises(SignalError, match=said):
        fill(dk.SignalCache(tmp_path, RECIPE), [{**collate(cached.examples(2)), "id": key}])


@pytest.mark.parametrize(
    "ids", [torch.tensor([7, 8]), ["7", "8"], (7, 8), torch.tensor([7, 8]).numpy()]
)
def test_keys_of_any_kind(ids, tmp_path):
    batch = {**collate(cached.examples(2)), "id": ids}
    cache = dk.SignalCache(tmp_path, RECIPE)
    fill(cache, [batch])
    assert next(iter(ids)) in cache
    assert cache.signals(batch)["logits"].shape == (2, 3)


# augmentation


def augmented(some, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        {**one, "pixels": one["pixels"] * torch.rand((), generator=generator), "seed": seed}
        for one in some
    ]


def test_random_augmentation_is_refused_in_training_and_when_a_fill_goes_on(tmp_path):
    some = cached.examples()
    cache = dk.SignalCache(tmp_path, RECIPE)
    fill(cache, cached.in_batches(augmented(some, 1), 3))
    other = augmented(some, 2)
    with pytest.raises(CacheError, match=r"'pixels' is not what the teacher saw, in 6 of 6"):
        cached.distiller_of(cache, RECIPE)(collate(other))
    with pytest.raises(CacheError, match=r"'pixels' is not what it was .*a seed"):
        fill(cache, cached.in_batches(other, 3))
    with pytest.raises(CacheError, match=r"'pixels' is not what it was"):
        fill(cache, [collate([other[0], *cached.examples(9)[6:]])])


def test_augmentation_is_declared_by_a_seed_in_the_key(tmp_path):
    some = cached.examples()

    def batch_of(seed):
        return {**collate(augmented(some, seed)), "seed": torch.full((6,), seed)}

    cache = dk.SignalCache(tmp_path, RECIPE)
    taught = cached.teacher()
    fill(cache, [batch_of(1), batch_of(2)], taught, key=("id", "seed"))
    for seed in (2, 1):
        expected = taught.signals(batch_of(seed))["logits"]
        torch.testing.assert_close(cache.signals(batch_of(seed))["logits"], expected)
    with pytest.raises(CacheError, match=r'6 of 6 examples are not in .*\["x0", 3\]'):
        cache.signals(batch_of(3))


class Random(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_a_teacher_that_draws_at_random_is_refused(tmp_path):
    taught = cached.teacher()
    taught.model.head = nn.Sequential(taught.model.head, Random())
    with pytest.raises(CacheError, match="'logits' is another in every run of the teacher"):
        fill(dk.SignalCache(tmp_path, RECIPE), cached.in_batches(cached.examples(), 3), taught)


# what batches bring


def test_a_batch_that_lacks_an_entry_of_the_first_is_refused(tmp_path):
    class Without(tiny.Fusion):
        def forward(self, ids, pixels, mask=None):
            mask = torch.ones(ids.shape).bool() if mask is None else mask
            return super().forward(ids, mask, pixels)

    torch.manual_seed(1)
    tables = {k: x for k, x in cached.FUSION_TABLES.items() if k not in ("inputs", "tokens")}
    taught = dk.Backbone(Without(), dk.DeclarativeAdapter(**tables))
    some = cached.examples(4, shortest=5)
    first, second = cached.in_batches(some, 2)
    del second["mask"]
    recipe = recipe_of(LOGITS)
    cache = dk.SignalCache(tmp_path / "a", recipe)
    with pytest.raises(CacheError, match=r"of 'mask' this batch has nothing for each of its 2"):
        fill(cache, [first, second], taught)
    with pytest.raises(CacheError, match=r"teacher reads 'mask' of this batch, and read 'ids', 'p"):
        fill(dk.SignalCache(tmp_path / "b", recipe), [second, first], taught)
    with pytest.raises(CacheError, match=r"'mask' this batch has nothing"):
        fill(dk.SignalCache(tmp_path / "a", recipe), [{**first, "mask": None}], taught)


def test_loaders_of_any_kind(tmp_path):
    some = cached.examples(5)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(some)

    loaders = {
        "generator": lambda: (one for one in cached.in_batches(some, 2)),
        "stream": lambda: DataLoader(Stream(), batch_size=2, collate_fn=collate),
        "map": lambda: DataLoader(some, batch_size=2, collate_fn=collate),
    }
    for name, made in loaders.items():
        cache = dk.SignalCache(tmp_path / name, RECIPE)
        filled = fill(cache, made())
        assert filled.stored == len(cache) == 5
        assert filled.estimate.examples == (5 if name == "map" else None)


def test_empty_batches_and_loaders(tmp_path):
    some = cached.examples(3)
    nothing = {name: x[:0] for name, x in collate(some).items()}
    cache = dk.SignalCache(tmp_path, RECIPE)
    for empty in ([], [nothing]):
        with pytest.raises(CacheError, match="the loader brought no example"):
            fill(cache, empty)
    with pytest.raises(CacheError, match="the loader brought no example"):
        cache.estimate(cached.teacher(), [nothing])
    assert fill(cache, [nothing, collate(some), nothing]).stored == 3
    assert cache.signals(nothing)["logits"].shape == (0, 3)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_given_back_as_it_was(around, tmp_path):
    some = cached.examples()
    taught = cached.teacher()
    taught.model.train()
    taught.model.encoder.blocks[0].eval()
    taught.model.drop = nn.Dropout(0.5)
    modes = {name: one.training for name, one in taught.model.named_modules()}
    cache = dk.SignalCache(tmp_path, RECIPE)
    with around():
        cache.estimate(taught, cached.in_batches(some, 3))
        fill(cache, cached.in_batches(some, 3), taught)
    assert {name: one.training for name, one in taught.model.named_modules()} == modes
    assert all(p.requires_grad for p in taught.model.parameters())
    result = cached.distiller_of(cache, RECIPE)(collate(some))
    result.loss.backward()
    expected = cached.distiller_of(taught, RECIPE)(collate(some)).loss
    torch.testing.assert_close(result.loss, expected)


def test_the_modes_are_given_back_after_an_error(tmp_path):
    taught = cached.teacher()
    taught.model.train()
    with pytest.raises(SignalError):
        fill(dk.SignalCache(tmp_path, RECIPE), [{"id": [1], "idss": torch.ones(1, 2)}], taught)
    assert taught.model.training


def test_under_autocast_the_numbers_are_those_of_autocast(tmp_path):
    some = cached.examples()
    taught = cached.teacher()
    cache = dk.SignalCache(tmp_path, RECIPE)
    with torch.autocast("cpu", torch.bfloat16):
        fill(cache, cached.in_batches(some, 6), taught)
        expected = taught.signals(collate(some))
    assert cache.signals(collate(some))["logits"].dtype == expected["logits"].dtype
    torch.testing.assert_close(cache.signals(collate(some))["logits"], expected["logits"])
    more = cached.in_batches(cached.examples(9)[6:], 3)
    with pytest.raises(CacheError, match="is float32 .* in this batch, and was bfloat16"):
        fill(cache, more, taught)


# before it starts


def test_an_estimate_writes_nothing_and_is_near(tmp_path):
    some = cached.examples(40)
    place = tmp_path / "cache"
    cache = dk.SignalCache(place, RECIPE)
    loader = DataLoader(some, batch_size=8, collate_fn=collate)
    estimate = cache.estimate(cached.teacher(), loader)
    assert not place.exists()
    filled = fill(cache, loader)
    assert estimate.bytes == pytest.approx(filled.bytes, rel=0.25)
    assert estimate.examples == 40
    assert {one.name for one in estimate.signals} == {"logits", "attention.text_to_image"}
    sizes = cache.sizes()
    for one in estimate.signals:
        assert one.bytes == pytest.approx(sizes[one.name] / 40, rel=0.2)
    said = str(estimate)
    assert "for 40 examples" in said
    assert "are free" in said
    later = dk.SignalCache(place, RECIPE).estimate(cached.teacher(), loader)
    assert later.bytes_per_example == pytest.approx(estimate.bytes_per_example)


def test_what_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "free_bytes", lambda _: 10_000)
    loader = DataLoader(cached.examples(40), batch_size=8, collate_fn=collate)
    cache = dk.SignalCache(tmp_path, RECIPE)
    with pytest.raises(
        CacheError, match=r"(?s)do not fit into .*10\.0 kB are free\nAllow an error"
    ):
        fill(cache, loader)
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_is_stored_already_needs_no_room_again(tmp_path, monkeypatch):
    some = cached.examples(40)
    cache = dk.SignalCache(tmp_path, RECIPE)
    filled = fill(cache, DataLoader(some[:32], batch_size=8, collate_fn=collate))
    monkeypatch.setattr(Store, "free_bytes", lambda _: int(filled.bytes / 2))
    assert fill(cache, DataLoader(some, batch_size=8, collate_fn=collate)).stored == 8


def test_options_without_sense_are_refused(tmp_path):
    batches = cached.in_batches(cached.examples(), 3)
    cache = dk.SignalCache(tmp_path, RECIPE)
    with pytest.raises(OptionError, match="shard_bytes is a number >= 1; got 0"):
        fill(cache, batches, shard_bytes=0)
    with pytest.raises(OptionError, match=r"writer is letters, digits, _ and -; got 'a/b'"):
        fill(cache, batches, writer="a/b")
    with pytest.raises(CacheError, match=r"Name the recipe: SignalCache\(place, recipe\)"):
        fill(dk.SignalCache(tmp_path / "new"), batches)
    with pytest.raises(CacheError, match=r"no signal cache in .* yet: fill it"):
        _ = dk.SignalCache(tmp_path / "new").header
    with pytest.raises(SignalError, match="a batch is a mapping"):
        fill(cache, [torch.zeros(2)])
    layers = recipe_of({**ATTENTION, "layers": [[0, 7]]})
    with pytest.raises(dk.errors.DistillKitError, match=r"7"):
        fill(dk.SignalCache(tmp_path / "new", layers), batches)


def test_shards_of_one_example_and_of_all_hold_the_same(tmp_path):
    some = cached.examples(7)
    taught = cached.teacher()
    found = []
    for i, size in enumerate((1, 500, 1 << 26)):
        cache = dk.SignalCache(tmp_path / str(i), RECIPE)
        fill(cache, cached.in_batches(some, 3), taught, shard_bytes=size)
        found.append((len(cache.shards), cache.signals(collate(some))))
    assert found[0][0] == 7
    assert 1 < found[1][0] < 7
    assert found[2][0] == 1
    for _, signals in found:
        assert torch.equal(signals["logits"], found[0][1]["logits"])
    assert not math.isnan(float(signals["logits"].sum()))
