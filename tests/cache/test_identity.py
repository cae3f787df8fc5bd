"""A cache of another teacher, recipe, key or preprocessing is refused, and says what differs."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import distillkit as dk
from distillkit._cache import agreement
from distillkit._cache import cache as cache_module
from distillkit.errors import CacheError, CacheWarning
from tests.support import cached, tiny
from tests.support.cached import ATTENTION, LOGITS, collate, distiller_of, recipe_of

RECIPE = recipe_of(LOGITS, ATTENTION)


@pytest.fixture
def place(tmp_path):
    cached.filled(tmp_path, RECIPE, cached.examples(), preprocessing="resized to 16")
    return tmp_path


def refilled(place, taught=None, some=None, **changes):
    keys = {"key": changes.pop("key")} if "key" in changes else {}
    cache = dk.SignalCache(place, RECIPE, **changes)
    batches = cached.in_batches(some or cached.examples(), 3)
    return cache.fill(taught or cached.teacher(), batches, progress=False, **keys)


def test_the_same_teacher_goes_on(place):
    assert refilled(place)[:2] == (0, 6)


@pytest.mark.parametrize("name", ["head.bias", "encoder.blocks.0.qkv.weight", "words.weight"])
def test_one_changed_weight_is_another_teacher(name, place):
    taught = cached.teacher()
    with torch.no_grad():
        taught.model.get_parameter(name).view(-1)[0] += 1e-6
    with pytest.raises(
        CacheError, match=r"something else:\n  weights: '\w+' in the cache, '\w+' here"
    ):
        refilled(place, taught)


def test_a_cache_checks_a_teacher_that_is_given(place):
    cache = dk.SignalCache(place)
    cache.check(RECIPE, cached.teacher())
    with pytest.raises(CacheError, match="weights"):
        cache.check(RECIPE, cached.teacher(seed=5))


OTHER_FILES = {
    "a special token": {"tokens": {"joint": [{**tiny.TEXT, "special": [1]}, tiny.IMAGE]}},
    "another logits field": {"logits": "module:head"},
    "without padding": {
        "tokens": {"joint": [{"modality": "text", "length": "ids"}, tiny.IMAGE]}
    },
    "a grid": {"tokens": {"joint": [tiny.TEXT, {"modality": "image", "grid": [1, 4]}]}},
    "fewer layers": {"streams": {"joint": "encoder.blocks.1"}},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_FILES)
def test_another_adapter_is_refused(name, place):
    adapter = dk.DeclarativeAdapter(**{**cached.FUSION_TABLES, **OTHER_FILES[name]})
    taught = dk.Backbone(cached.teacher().model, adapter)
    with pytest.raises(CacheError, match=r"  adapter: '.*' in the cache, '.*' here"):
        refilled(place, taught)


def test_another_model_class_is_refused_by_its_name(place):
    class Fusion(tiny.Fusion):
        pass

    torch.manual_seed(1)
    taught = dk.Backbone(Fusion(), cached.adapter_of(tiny.Fusion))
    with pytest.raises(CacheError, match=r"  teacher: '.*tiny.Fusion' in the cache, '.*<locals>"):
        refilled(place, taught)


def test_another_key_is_refused(place):
    with pytest.raises(CacheError, match=r"  key: \('id',\) in the cache, \('labels',\) here"):
        refilled(place, key="labels")


class Processor:
    """As transformers has them: it says what it would save of itself."""

    def __init__(self, **settings):
        self.settings = settings

    def to_dict(self):
        return self.settings


def test_another_preprocessing_is_refused(tmp_path, place):
    with pytest.raises(
        CacheError, match="preprocessing: 'resized to 16' in the cache, 'resized to 17' here"
    ):
        dk.SignalCache(place, preprocessing="resized to 17")
    assert len(dk.SignalCache(place, preprocessing="resized to 16")) == 6
    one = {"size": [16, 16], "mean": {0.5, 0.25}, "dtype": torch.float32}
    for i, given in enumerate((Processor(**one), one)):
        cached.filled(tmp_path / str(i), RECIPE, cached.examples(2), preprocessing=given)
        for same in (Processor(**one), dict(reversed(one.items()))):
            dk.SignalCache(tmp_path / str(i), preprocessing=same)
        with pytest.raises(CacheError, match="preprocessing"):
            dk.SignalCache(tmp_path / str(i), preprocessing={**one, "size": [16, 17]})


@pytest.mark.parametrize("given", [object(), {"transform": lambda x: x}, {1: object()}])
def test_preprocessing_that_is_another_in_every_process_is_refused(given, tmp_path):
    with pytest.raises(CacheError, match=r"preprocessing is a name, a processor with to_dict\(\)"):
        dk.SignalCache(tmp_path, RECIPE, preprocessing=given)


def test_another_version_warns_and_does_not_go_on(place, monkeypatch):
    for module in (cache_module, agreement):
        monkeypatch.setattr(module, "installed_version", lambda: "99.0")
    with pytest.warns(CacheWarning, match=r"was filled by distillkit .* and this is 99\.0"):
        cache = dk.SignalCache(place, RECIPE)
    assert cache.signals(collate(cached.examples()))["logits"].shape == (6, 3)
    with pytest.raises(CacheError, match=r"  version: '.*' in the cache, '99\.0' here"):
        cache.fill(cached.teacher(), cached.in_batches(cached.examples(), 3), progress=False)


LACKING = {
    "a signal": ({**ATTENTION, "on": "attention.image_to_text"}, ["'attention.image_to_text'", "not stored"]),
    "a layer": ({**ATTENTION, "layers": "all"}, ["layers [0]", "stored are [1]"]),
    "tokens": ({**ATTENTION, "align": ["overlap"]}, ["which tokens its entries are"]),
    "padded rows": ({**ATTENTION, "rows": "all"}, ["padded positions", 'rows = "all"']),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
def test_a_recipe_that_needs_more_is_refused(name, tmp_path):
    tables = dict(cached.FUSION_TABLES)
    offsets = {**tiny.TEXT, "extents": "offsets"}
    tables["tokens"] = {"joint": [offsets, {**tiny.IMAGE, "uncropped": True}]}
    taught = dk.Backbone(cached.teacher().model, dk.DeclarativeAdapter(**tables))
    batches = cached.in_batches(cached.examples(), 3)
    for one in batches:
        start = torch.arange(one["ids"].shape[1]).expand(one["ids"].shape)
        one["offsets"] = torch.stack([start, start + 1], -1).float() * one["mask"][..., None]
    cache = dk.SignalCache(tmp_path, RECIPE)
    cache.fill(taught, batches, progress=False)
    term, said = LACKING[name]
    asked = recipe_of(term)
    for ask in (
        lambda: cache.check(asked),
        lambda: dk.SignalCache(tmp_path, [RECIPE, asked]),
        lambda: distiller_of(cache, asked),
    ):
        with pytest.raises(CacheError, match=r"does not hold:\n  'attention") as caught:
            ask()
        assert all(part in str(caught.value) for part in said)
        assert "SignalCache(place, [recipe, other])" in str(caught.value)


def test_an_error_or_a_coding_that_was_not_the_one_at_filling_is_refused(tmp_path):
    """It would be taken for one that holds."""
    cached.filled(tmp_path, RECIPE, cached.examples(), error=1e-2, codings={"logits": "int8"})
    dk.SignalCache(tmp_path, RECIPE)
    dk.SignalCache(tmp_path, RECIPE, error=1e-2, codings={"logits": "int8"})
    with pytest.raises(CacheError, match=r"error: 0.01 in the cache, 0.001 here"):
        dk.SignalCache(tmp_path, RECIPE, error=1e-3)
    with pytest.raises(CacheError, match=r"coding of 'logits': 'int8' in the cache, 'exact' here"):
        dk.SignalCache(tmp_path, RECIPE, codings={"logits": "exact"})
    with pytest.raises(CacheError, match=r"coding is given for \['logit'\], .*'logits'"):
        dk.SignalCache(tmp_path, RECIPE, codings={"logit": "exact"})


# weights that are not plain numbers of this process


def test_weights_that_are_not_here_are_named_by_hand(tmp_path):
    taught = cached.teacher()
    with torch.device("meta"):
        taught.model.spare = nn.Linear(2, 2)
    batches = cached.in_batches(cached.examples(), 3)
    cache = dk.SignalCache(tmp_path, RECIPE)
    with pytest.raises(CacheError, match=r"weight 'spare.bias' is not here .*weights=\"vilt"):
        cache.fill(taught, batches, progress=False)
    cache.fill(taught, batches, weights="tiny, revision 1", progress=False)
    assert cache.fill(taught, batches, weights="tiny, revision 1", progress=False).known == 6
    with pytest.raises(CacheError, match="weights: 'tiny, revision 1' in the cache, 'tiny, rev"):
        cache.fill(taught, batches, weights="tiny, revision 2", progress=False)


def quantised(change: float = 0.0):
    """A teacher whose large head is in 8 bits, which torch prints in short."""
    torch.manual_seed(1)
    model = tiny.Fusion()
    model.wide = nn.Linear(64, 64)
    with torch.no_grad():
        model.wide.weight[32, 32] += change
    made = torch.ao.quantization.quantize_dynamic(model, {"wide"}, dtype=torch.qint8)
    return dk.Backbone(made, cached.adapter_of(tiny.Fusion))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_teacher_is_known_by_all_of_its_numbers(place, tmp_path):
    folder = tmp_path / "quantised"
    cached.filled(folder, RECIPE, cached.examples(), taught=quantised())
    refill = dk.SignalCache(folder, RECIPE)
    batches = cached.in_batches(cached.examples(), 3)
    assert refill.fill(quantised(), batches, progress=False).known == 6
    with pytest.raises(CacheError, match="weights"):
        refill.fill(quantised(change=0.1), batches, progress=False)


class Counted(nn.Module):
    """A module with a state beside its tensors."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_a_state_beside_the_tensors_counts_and_must_be_data(place, tmp_path):
    taught = cached.teacher()
    taught.model.extra = Counted({"scale": (1, torch.ones(2))})
    cached.filled(tmp_path / "b", RECIPE, cached.examples(), taught=taught)
    batches = cached.in_batches(cached.examples(), 3)
    cache = dk.SignalCache(tmp_path / "b", RECIPE)
    assert cache.fill(taught, batches, progress=False).known == 6
    taught.model.extra.state = {"scale": (1, torch.ones(2) * 1.001)}
    with pytest.raises(CacheError, match="weights"):
        cache.fill(taught, batches, progress=False)
    taught.model.extra.state = object()
    with pytest.raises(CacheError, match=r"'extra._extra_state' .*object.*weights="):
        cache.fill(taught, batches, progress=False)


# the header


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["header"].update(weights="x"), "is damaged: its checksum is another"),
        (lambda t: t.pop("checksum"), "is damaged: 'checksum'"),
    ],
)
def test_a_header_that_was_changed_is_refused(change, said, place):
    file = place / "cache.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    change(table)
    file.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(CacheError, match=said):
        dk.SignalCache(place)


def test_another_format_is_refused(place):
    cache = dk.SignalCache(place)
    newer = cache.header.model_copy(update={"format": 7})
    (place / "cache.json").write_bytes(newer.to_bytes())
    with pytest.raises(CacheError, match="written in format 7, .*which reads 1: fill a new cache"):
        dk.SignalCache(place)
