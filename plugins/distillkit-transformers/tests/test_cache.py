"""Every signal of every family comes back from a cache as the model gave it."""

from __future__ import annotations

import pytest
import torch

import distillkit as dk
from distillkit._backbone.batch import SideOfBatch
from distillkit.errors import CacheError
from tests.support.same_signals import assert_same, offered

from . import families
from .test_recipes import TEACHERS, named, other_tokens, teacher_and_batch


def objective(signals, names):
    terms = []
    for name in names:
        layered = not isinstance(signals[name], (torch.Tensor, dk.Attention))
        loss = "attention_kl" if name.startswith("attention") else "mse"
        terms.append(dk.Term(loss, on=name, layers="all" if layered else "last"))
    return dk.Objective(terms)


# their attention is of the pairs of a text and its images: several rows for an example
OF_PAIRS = {
    "vilt_of_two_images", "vilt_dual_encoder_of_two_images", "vilt_dual_encoder_of_one_image",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(OF_PAIRS))
def test_signals_of_pairs_are_refused(name, tmp_path):
    model, batch = families.FAMILIES[name]()
    signals = dk.Backbone(model.eval()).signals(batch)
    names = [one for one in offered(signals) if one.startswith("attention.")]
    cache = dk.SignalCache(tmp_path, objective(signals, names), inputs=())
    with pytest.raises(CacheError, match="a cache stores signals whose first axis is the example"):
        cache.fill(dk.Backbone(model), [{**batch, "id": ["a", "b"]}], progress=False)


@pytest.mark.parametrize("name", sorted(set(families.FAMILIES) - OF_PAIRS))
def test_every_signal_comes_back(name, tmp_path):
    model, batch = families.FAMILIES[name]()
    families.spread(model).eval()
    backbone = dk.Backbone(model)
    if "labels" in batch:
        batch = {**batch, "teacher_labels": batch.pop("labels")}
    view = SideOfBatch(batch, "teacher")
    with torch.no_grad():
        expected = backbone.signals(view)
    names = [one for one in offered(expected) if not order_is_drawn(name, one)]
    cache = dk.SignalCache(tmp_path, objective(expected, names), inputs=())
    keyed = {**batch, "id": ["a", "b"]}
    cache.fill(backbone, [keyed], progress=False)
    assert_same(cache.signals(keyed), expected, names, rtol=1e-5, atol=1e-6)


def test_an_order_that_is_drawn_at_random_is_refused(tmp_path):
    model, batch = families.FAMILIES["vilt"]()
    recipe = dk.Objective([dk.Term("attention_kl", on="attention.joint")])
    cache = dk.SignalCache(tmp_path, recipe)
    with pytest.raises(CacheError, match=r"'attention.joint' is another in every run"):
        cache.fill(families.spread(model), [{**batch, "id": [0, 1]}], progress=False)


def alone(batch, i):
    """One example of a batch, without the padding that the other made necessary."""
    mask = batch["attention_mask"]
    real = mask[i].bool()
    return {
        name: x[i : i + 1][:, real] if x.shape == mask.shape else x[i : i + 1]
        for name, x in batch.items()
    }


def has_padding(name):
    """Whether two examples of unequal length stand in rows of one batch."""
    batch = families.FAMILIES[name]()[1]
    mask = batch.get("attention_mask")
    rows = all(isinstance(x, torch.Tensor) and len(x) == 2 for x in batch.values())
    return rows and mask is not None and not mask.all() and "unequal" not in name


PADDED = [name for name in families.FAMILIES if has_padding(name) and name not in OF_PAIRS]


@pytest.mark.parametrize("name", PADDED)
def test_padding_is_that_of_the_batch_that_asks(name, tmp_path):
    model, batch = families.FAMILIES[name]()
    if "labels" in batch:
        batch = {**batch, "decoder_input_ids": batch.pop("labels")}
    families.spread(model).eval()
    backbone = dk.Backbone(model)
    with torch.no_grad():
        whole = backbone.signals(batch)
        names = [n for n in offered(whole) if not order_is_drawn(name, n) and known(whole, n)]
        cache = dk.SignalCache(tmp_path, objective(whole, names))
        cache.fill(backbone, [{**batch, "id": [0, 1]}], progress=False)
        for i in range(2):
            one = alone(batch, i)
            found = cache.signals({**one, "id": [i]})
            assert_same(found, backbone.signals(one), names, rtol=1e-3, atol=1e-4)


def known(signals, name):
    """Whether it is known which of a signal's positions are padding."""
    value = signals[name]
    unknown = isinstance(value, torch.Tensor) and value.ndim > 2 and signals.mask(name) is None
    return not unknown or bool(signals.axes(name))


def order_is_drawn(family, signal):
    return family.startswith("vilt") and signal in ("attention.joint", "hidden.joint")


@pytest.mark.parametrize("name", TEACHERS)
def test_tokens_are_matched_by_extents_that_come_from_the_cache(name, tmp_path):
    """With another tokenizer and another grid; half of the examples, in another order."""
    teacher, of_teacher = teacher_and_batch(name)
    of_teacher["image_boxes"] = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    student, of_student = other_tokens()
    batch = {**named("teacher", of_teacher), **named("student", of_student), "id": ["a", "b"]}
    recipe = dk.load_recipe(TEACHERS[name])
    families.spread(teacher)
    cache = dk.SignalCache(tmp_path, recipe)
    cache.fill(teacher, [batch], progress=False)
    swapped = {key: [x[1], x[0]] if isinstance(x, list) else x.flip(0) for key, x in batch.items()}
    for given in (batch, swapped):
        ran, read = (
            dk.Distiller(student, one, recipe, ignore=["id"]).eval()(given, progress=0.5)
            for one in (teacher, cache)
        )
        torch.testing.assert_close(read.parts, ran.parts, rtol=1e-4, atol=1e-6)
        assert all(part > 0 for part in ran.parts.values())


def padded_further(batch, count, *, left=False):
    """The same examples with more padding."""
    mask = batch["attention_mask"]
    more = torch.zeros(len(mask), count, dtype=mask.dtype)
    return {
        name: torch.cat([more, x] if left else [x, more], 1) if x.shape == mask.shape else x
        for name, x in batch.items()
    }


@pytest.mark.parametrize("family", ["llava_padded_left", "qwen2_5_vl"])
def test_padded_rows_of_a_decoder_are_those_of_one_length(family, tmp_path):
    """Text tokens are a part of the sequence, and padding belongs to them."""
    model, batch = families.FAMILIES[family]()
    families.spread(model).eval()
    term = dk.Term("attention_kl", on="attention.text_to_image", rows="all")
    cache = dk.SignalCache(tmp_path, dk.Objective([term]))
    keyed = {**batch, "id": [0, 1]}
    with torch.no_grad():
        backbone = dk.Backbone(model)
        cache.fill(backbone, [keyed], progress=False)
        found, expected = (
            one.signals(given)["attention.text_to_image"][-1].with_rows(None).probabilities()
            for one, given in ((cache, keyed), (backbone, batch))
        )
    torch.testing.assert_close(found, expected)
    with pytest.raises(CacheError, match="padding='max_length'"):
        cache.signals({**padded_further(batch, 3), "id": [0, 1]})
