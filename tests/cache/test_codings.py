"""Fewer bytes with an error that was measured, stated and watched."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import distillkit as dk
from distillkit._cache.coding import coding, log_probabilities_error, relative_error
from distillkit.errors import CacheError, OptionError
from tests.support import cached
from tests.support.cached import ATTENTION, LOGITS, collate, recipe_of

FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None)
RECIPE = recipe_of(LOGITS, ATTENTION, {"loss": "mse", "on": "hidden.joint"})
CLASSES = 40


def teacher():
    """One whose answers and attention are sharp, so that errors are seen."""
    taught = cached.teacher(classes=CLASSES)
    with torch.no_grad():
        taught.model.head.weight.mul_(8)
        taught.model.encoder.blocks[1].qkv.weight.mul_(3)
    return taught


def specs(cache):
    return {one.name: one for one in cache.header.signals}


def error_of(cache, name):
    return max(piece.error for layer in specs(cache)[name].pieces for piece in layer.values())


def kl(expected, given_):
    p, q = expected.detach().double().log_softmax(-1), given_.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def map_error(expected, given_):
    """The mean KL over the rows that have a key."""
    scores = (one[-1].detach().scores().double() for one in (expected, given_))
    p, q = (one.log_softmax(-1).nan_to_num(0, neginf=0) for one in scores)
    terms = (p.exp() * (p - q)).sum(-1)
    return float(terms[expected[-1].valid_rows()].mean())


def rms(expected, given_, mask):
    one, other = expected[mask].detach().double(), given_[mask].double()
    return float(((one - other).square().mean() / one.square().mean()).sqrt())


CODINGS = [
    *[("logits", one) for one in ("float16", "bfloat16", "int8", "top_k:8", "top_k:32")],
    *[
        ("attention.text_to_image", one)
        for one in ("float16", "bfloat16", "int8", "map", "map:float16", "uint8")
    ],
    *[("hidden.joint", one) for one in ("float16", "bfloat16", "int8")],
]


@pytest.mark.parametrize(("name", "chosen"), CODINGS)
def test_the_error_that_is_stated_is_that_of_what_is_read(name, chosen, tmp_path):
    some = cached.examples()
    taught = teacher()
    cache = cached.filled(tmp_path, RECIPE, some, size=6, taught=taught, codings={name: chosen})
    batch = collate(some)
    expected, given_ = taught.signals(batch), cache.signals(batch)
    if name == "logits":
        error = kl(expected[name], given_[name])
    elif name == "hidden.joint":
        mask = torch.cat([batch["mask"], torch.ones(6, 4).bool()], 1)
        error = rms(expected[name][-1], given_[name][-1], mask)
    else:
        error = map_error(expected[name], given_[name])
    assert error == pytest.approx(error_of(cache, name), rel=1e-3, abs=1e-9)
    exact = chosen == "map"
    assert (error < 1e-9) if exact else (0 < error < 0.05 or chosen.startswith("top_k"))
    others = {one for one in specs(cache) if one != name}
    for other in others:
        assert error_of(cache, other) == 0


@pytest.mark.parametrize("allowed", [1e-6, 1e-4, 1e-2])
def test_what_is_chosen_keeps_to_the_error_in_fewer_bytes(allowed, tmp_path):
    some = cached.examples(12)
    taught = teacher()
    exact = cached.filled(tmp_path / "exact", RECIPE, some, taught=taught)
    cache = cached.filled(tmp_path / "small", RECIPE, some, taught=taught, error=allowed)
    assert all(specs(cache)[name].bound == allowed for name in specs(cache))
    for batch in cached.in_batches(some, 4):
        expected, given_ = taught.signals(batch), cache.signals(batch)
        assert kl(expected["logits"], given_["logits"]) <= allowed
        name = "attention.text_to_image"
        assert map_error(expected[name], given_[name]) <= allowed
    sizes = cache.sizes(), exact.sizes()
    assert all(sizes[0][name] <= sizes[1][name] for name in sizes[0])
    if allowed >= 1e-4:
        assert sum(sizes[0].values()) < 0.8 * sum(sizes[1].values())


def test_without_an_error_every_number_is_as_it_was(tmp_path):
    some = cached.examples()
    taught = teacher()
    cache = cached.filled(tmp_path, RECIPE, some, taught=taught)
    batch = collate(some[:4])
    assert torch.equal(cache.signals(batch)["logits"], taught.signals(batch)["logits"])


class Scaled(torch.nn.Module):
    """A head whose numbers grow with the first pixel: to what half precision does not hold."""

    def __init__(self, head):
        super().__init__()
        self.head, self.change = head, lambda x: x

    def forward(self, x):
        return self.change(self.head(x))


def scaled():
    taught = teacher()
    taught.model.head = Scaled(taught.model.head)
    return taught, taught.model.head


def in_the_second(change):
    """Applied in every batch but the first, which is run twice."""
    ran = []

    def changed(x):
        ran.append(None)
        return change(x) if len(ran) > 2 else x

    return changed


def minus_infinity(x):
    return torch.where(torch.arange(x.shape[-1]) == 2, -math.inf, x)


def nan(x):
    return torch.where(torch.arange(x.shape[-1]) == 2, math.nan, x)


NOT_HELD = [
    ("float16", lambda x: x * 1e6),
    *[(chosen, change) for chosen in ("int8", "top_k:8") for change in (minus_infinity, nan)],
]


@pytest.mark.parametrize(("chosen", "change"), NOT_HELD)
def test_a_batch_that_a_coding_cannot_hold_is_refused(chosen, change, tmp_path):
    taught, head = scaled()
    head.change = in_the_second(change)
    batches = cached.in_batches(cached.examples(8), 4)
    cache = dk.SignalCache(tmp_path, recipe_of(LOGITS), codings={"logits": chosen})
    with pytest.raises(CacheError, match=r"'logits' as .* mean error of inf .*\"exact\""):
        cache.fill(taught, batches, progress=False)


@pytest.mark.parametrize("change", [minus_infinity, nan, lambda x: x * 1e6])
def test_exact_numbers_come_back_whatever_they_are(change, tmp_path):
    taught, head = scaled()
    head.change = in_the_second(change)
    some = cached.examples(8)
    cache = cached.filled(tmp_path, recipe_of(LOGITS), some, taught=taught)
    expected = taught.signals(collate(some[4:]))["logits"]
    given_ = cache.signals(collate(some[4:]))["logits"]
    assert torch.equal(given_.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(given_.isnan(), expected.isnan())


def test_large_hidden_states_are_refused_in_half_precision(tmp_path):
    taught = teacher()
    with torch.no_grad():
        taught.model.encoder.blocks[1].out.weight.mul_(1e7)
    recipe = recipe_of({"loss": "mse", "on": "hidden.joint"})
    batches = cached.in_batches(cached.examples(), 3)
    cache = dk.SignalCache(tmp_path / "a", recipe, codings={"hidden.joint": "float16"})
    with pytest.raises(CacheError, match=r"'hidden.joint' as float16 has a mean error of inf"):
        cache.fill(taught, batches, progress=False)
    watched = dk.SignalCache(tmp_path / "b", recipe, error=0.02)
    watched.fill(taught, batches, progress=False)
    assert error_of(watched, "hidden.joint") < 0.02


def test_a_batch_beyond_the_bound_is_refused_and_says_the_fix(tmp_path):
    taught, head = scaled()
    head.change = in_the_second(lambda x: x + 3000)
    batches = cached.in_batches(cached.examples(8), 4)
    cache = dk.SignalCache(tmp_path, recipe_of(LOGITS), error=1e-5)
    with pytest.raises(CacheError, match=r"at most 1e-05 is allowed.*or allow more") as caught:
        cache.fill(taught, batches, progress=False)
    assert 'codings={"logits": "exact"}' in str(caught.value)
    assert len(dk.SignalCache(tmp_path)) == 0


SENSELESS = {
    "an unknown coding": ({"logits": "float8"}, r"'logits' cannot be written as 'float8'.*top_k"),
    "more classes than there are": ({"logits": "top_k:64"}, "fewer than there are classes"),
    "classes of no logits": ({"hidden.joint": "top_k:8"}, "'hidden.joint' cannot be written"),
    "a map of no attention": ({"logits": "map"}, "attention as map"),
    "another signal": ({"logit": "int8"}, r"coding is given for \['logit'\], .*'logits'"),
}


@pytest.mark.parametrize("name", SENSELESS)
def test_a_coding_without_sense_is_refused_with_those_that_there_are(name, tmp_path):
    codings, said = SENSELESS[name]
    cache = dk.SignalCache(tmp_path, RECIPE, codings=codings)
    with pytest.raises((CacheError, OptionError), match=said):
        cache.fill(teacher(), cached.in_batches(cached.examples(), 3), progress=False)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("error", [-1e-3, float("nan")])
def test_an_error_is_a_number_from_0(error, tmp_path):
    with pytest.raises(OptionError, match="error is a number >= 0; got"):
        dk.SignalCache(tmp_path, RECIPE, error=error)


SHIFTED = recipe_of({"loss": "mse", "on": "logits"})


def test_logits_whose_own_numbers_count_are_not_written_as_probabilities(tmp_path):
    """top_k keeps what the classes' probabilities say, and mse reads more."""
    some = cached.examples()
    taught, head = scaled()
    head.change = lambda x: x + 30 * F.one_hot(x.argmax(-1), CLASSES) + 5
    cache = cached.filled(tmp_path / "a", SHIFTED, some, taught=taught, error=1e-3)
    codings = {p.coding for layer in specs(cache)["logits"].pieces for p in layer.values()}
    assert not any(one.startswith("top_k") for one in codings)
    ran, read = (one.signals(collate(some)) for one in (taught, cache))
    torch.testing.assert_close(read["logits"], ran["logits"], rtol=0.05, atol=0.3)
    chosen = dk.SignalCache(tmp_path / "b", SHIFTED, codings={"logits": "top_k:8"})
    with pytest.raises((CacheError, OptionError), match="'logits' cannot be written as 'top_k:8'"):
        chosen.fill(taught, cached.in_batches(some, 3), progress=False)


def test_the_error_is_that_at_the_temperature_of_the_recipe(tmp_path):
    """A soft target says more of the improbable classes than the probabilities do."""
    some = cached.examples()
    taught, head = scaled()
    head.change = lambda x: 8 * x
    soft = recipe_of({**LOGITS, "options": {"temperature": 8.0}})
    cache = cached.filled(tmp_path, soft, some, taught=taught, error=1e-2)
    batch = collate(some)
    expected, given_ = taught.signals(batch)["logits"], cache.signals(batch)["logits"]
    assert kl(expected / 8, given_ / 8) <= 1e-2


# the codings themselves

NUMBERS = st.floats(-1e4, 1e4, width=32)
EVERY = ["float16", "bfloat16", "int8", "top_k:2", "top_k:3"]


def rows(values, width):
    return torch.tensor(values[: len(values) // width * width]).reshape(-1, width)


@FEW
@given(st.lists(NUMBERS, min_size=5, max_size=40), st.sampled_from(EVERY))
def test_decoding_gives_the_shape_dtype_and_nearly_the_numbers(values, name):
    x = rows(values, 5)
    one = coding(name)
    parts = one.encode(x)
    assert all(part.shape[:1] == x.shape[:1] for part in parts.values())
    given_ = one.decode(parts, torch.float32, 5)
    assert given_.shape == x.shape
    assert given_.dtype == torch.float32
    if name.startswith("top_k"):
        x, given_ = x.log_softmax(-1), given_.log_softmax(-1)
        k = int(name[-1])
        top = x.topk(k, -1).indices
        torch.testing.assert_close(given_.gather(-1, top), x.gather(-1, top), rtol=1e-4, atol=1e-3)
    else:
        relative = {"float16": 2**-11, "bfloat16": 2**-8, "int8": 0.0}[name]
        absolute = x.abs().amax(-1, keepdim=True) * 1.01 / 254 if name == "int8" else 1e-7
        assert bool(((given_ - x).abs() <= x.abs() * relative + absolute).all())


@FEW
@given(st.lists(NUMBERS, min_size=6, max_size=36), st.integers(1, 5))
def test_top_k_adds_up_to_1_and_makes_nothing_impossible(values, k):
    x = rows(values, 6) / 1e3
    one = coding(f"top_k:{k}")
    given_ = one.decode(one.encode(x), torch.float32, 6)
    torch.testing.assert_close(given_.exp().sum(-1), torch.ones(len(x)), rtol=1e-4, atol=1e-4)
    assert bool(given_.isfinite().all())
    kept = one.encode(x)["index"].long()
    rest = given_.exp().scatter(-1, kept, 0).sum(-1)
    expected = x.softmax(-1).scatter(-1, kept, 0).sum(-1)
    torch.testing.assert_close(rest, expected, rtol=1e-4, atol=1e-5)


@FEW
@given(st.lists(st.floats(-40, 0, width=32), min_size=4, max_size=24))
def test_a_byte_holds_log_probabilities_down_to_minus_16(values):
    x = rows(values, 4).log_softmax(-1)
    x[:, 0] = -math.inf
    one = coding("uint8")
    given_ = one.decode(one.encode(x), torch.float32, 4)
    assert torch.equal(given_ == -math.inf, x == -math.inf)
    difference = (given_ - x.clamp(min=-16)).abs()[:, 1:]
    assert float(difference.max()) <= 16 / 254 / 2 + 1e-5


@FEW
@given(st.lists(st.floats(-(2.0**-130), 2.0**-130, width=32), min_size=3, max_size=9))
def test_8_bits_never_turn_a_sign_around(values):
    """However small the numbers: their step is rounded too."""
    x = rows(values, 3)
    one = coding("int8")
    given_ = one.decode(one.encode(x), torch.float32, 3)
    assert bool((given_ * x.sign() >= 0).all())


@pytest.mark.parametrize("chosen", ["map", "map:float16", "uint8"])
def test_a_map_with_nan_is_refused(chosen, tmp_path):
    """It would be read as one of rows that do not count."""
    taught = cached.teacher()
    with torch.no_grad():
        taught.model.encoder.blocks[1].qkv.bias[0] = math.nan
    cache = dk.SignalCache(
        tmp_path, recipe_of(ATTENTION), codings={"attention.text_to_image": chosen}
    )
    with pytest.raises(CacheError, match="'attention.text_to_image' has scores that are NaN"):
        cache.fill(taught, [collate(cached.examples()[:3])], progress=False)


def test_measures():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]).log()
    q = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert log_probabilities_error(p, q) == pytest.approx(expected)
    assert log_probabilities_error(p, p) == pytest.approx(0, abs=1e-8)
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(0.1)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
