"""Signals: moved, rebuilt by other libraries, copied, stored, joined, and out of inference mode."""

from __future__ import annotations

import copy
import gc
import io
import json
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, default_convert
from torch.utils.data._utils.pin_memory import pin_memory

import distillkit as dk
from distillkit import (
    Attention,
    DeclarativeAdapter,
    Signals,
    TokenAxis,
    adapter_for,
    capture,
    errors,
    losses,
)
from distillkit._backbone.layers import Layers
from tests.support import tiny

FUSION = {**tiny.FUSION_TABLES, "hidden": {"joint": "encoder.blocks.*"}}
FUSION["absent"] = {"embedding.text": "a fusion encoder has none"}
DUAL = {
    **tiny.DUAL_TABLES,
    "hidden": {"text": "text.blocks.*"},
    "tokens": {"text": [tiny.TEXT], "image": [{**tiny.IMAGE, "uncropped": True}]},
}
ACROSS = "attention.text_to_image"


def build_signals(model=None, tables=FUSION, examples=3, seed=0):
    """What a small real model exposes for a batch, some texts of which are padded."""
    torch.manual_seed(seed)
    model, batch = model or tiny.Fusion(), tiny.batch(examples, seed=seed)
    adapter = adapter_for(model, DeclarativeAdapter(**tables))
    with capture(model, *adapter.streams.values(), outputs=adapter.outputs) as record:
        output = model(**adapter.inputs(batch))
        return adapter.signals(record, output, adapter.layout(batch, record))


def tensors_of(value):
    """Every tensor of a signal, of what is known beside it, or of several of these."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Attention):
        parts = [value.query, value.key] if not value.is_replayed else []
        parts += [value.value, value.mask, value.bias, value.rows]
        return [x for x in parts if x is not None] + [value.scores(), value.probabilities()]
    if isinstance(value, TokenAxis):
        return [x for x in vars(value).values() if isinstance(x, Tensor)]
    return [] if value is None else [x for one in value for x in tensors_of(one)]


def beside(signals, name):
    mask = signals.mask(name)
    return ([] if mask is None else [mask]) + tensors_of(signals.axes(name))


def assert_same(ours, expected):
    assert list(ours) == list(expected)
    assert dict(ours.absent) == dict(expected.absent)
    for name in expected:
        pairs = [(tensors_of(ours[name]), tensors_of(expected[name]))]
        pairs.append((beside(ours, name), beside(expected, name)))
        for mine, theirs in pairs:
            assert len(mine) == len(theirs)
            for one, other in zip(mine, theirs, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0)
        for one, other in zip(ours.axes(name), expected.axes(name), strict=True):
            plain = [
                {k: v for k, v in vars(x).items() if not isinstance(v, Tensor)}
                for x in (one, other)
            ]
            assert plain[0] == plain[1]


class Counted:
    """A function without arguments that counts how often it was asked."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self):
        self.calls += 1
        return self.value


def lazy_signals():
    """Signals of which nothing is computed yet, and what would compute it."""
    parts = [Counted(torch.ones(2, 5)), Counted(torch.zeros(2, 3, 4)), Counted(torch.ones(2, 3, 4))]
    axis = Counted((TokenAxis("text", ids=torch.arange(6).view(2, 3)),))
    signals = Signals(
        {"logits": parts[0], "hidden.text": lambda: Layers(parts[1:])}, axes={"hidden.text": axis}
    )
    return signals, [*parts, axis]


class TestMoves:
    def test_everything_goes_to_the_device(self):
        signals = build_signals()
        moved = signals.to("meta")
        assert list(moved) == list(signals)
        assert moved.absent == {"embedding.text": "a fusion encoder has none"}
        assert moved.mask("hidden.joint").shape == (3, 9)
        for name in signals:
            assert tensors_of(moved[name]), name
            assert {x.device.type for x in tensors_of(moved[name]) + beside(moved, name)} == {
                "meta"
            }
        assert [axis.grid for axis in moved.axes(ACROSS)] == [None, (2, 2)]
        assert signals["logits"].device.type == "cpu"

    def test_where_they_are_already_nothing_is_copied(self):
        signals = build_signals()
        assert signals.to("cpu", non_blocking=True)["logits"] is signals["logits"]
        assert signals.to("cpu", copy=True)["logits"] is not signals["logits"]

    @pytest.mark.parametrize(
        "move",
        [
            lambda x: x.to(torch.float64),
            lambda x: x.to("cpu", torch.float64),
            lambda x: x.to(dtype=torch.float64),
            lambda x: x.to(torch.zeros(1, dtype=torch.float64)),
        ],
    )
    def test_only_floating_point_values_change_their_dtype(self, move):
        signals = build_signals(tiny.Dual(), DUAL)
        signals.axes(ACROSS)
        moved = move(signals)
        assert moved["logits"].dtype == torch.float64
        assert moved["hidden.text"][0].dtype == torch.float64
        attention = moved[ACROSS][-1]
        assert (attention.query.dtype, attention.mask, attention.rows.dtype) == (
            torch.float64, None, torch.bool,
        )  # fmt: skip
        text, image = moved.axes(ACROSS)
        assert (text.ids.dtype, text.valid.dtype) == (torch.int64, torch.bool)
        assert image.extents.dtype == torch.float32  # a place keeps its digits
        torch.testing.assert_close(
            attention.probabilities(), signals[ACROSS][-1].probabilities().double(), rtol=1e-6, atol=1e-6,
        )  # fmt: skip

    def test_integers_are_refused(self):
        with pytest.raises(errors.OptionError, match="floating point dtypes; got torch.int64"):
            build_signals().to(torch.long)
        with pytest.raises(errors.OptionError, match="no memory format"):
            build_signals().to(memory_format=torch.channels_last)

    @pytest.mark.parametrize("act", [lambda s: s.to("meta"), Signals.detach, Signals.pin_memory])
    def test_nothing_is_computed_to_be_moved(self, act, monkeypatch):
        monkeypatch.setattr(Tensor, "pin_memory", lambda x: x.clone())
        signals, parts = lazy_signals()
        moved = act(signals)
        assert [one.calls for one in parts] == [0, 0, 0, 0]
        moved["hidden.text"][1]
        assert [one.calls for one in parts] == [0, 0, 1, 0]
        moved.axes("hidden.text")
        assert [one.calls for one in parts] == [0, 0, 1, 1]

    def test_what_is_computed_is_moved_at_once(self):
        signals = Signals({"logits": lambda: torch.zeros(2, 5), "hidden.text": [torch.zeros(2, 3)]})
        held = [weakref.ref(signals["logits"]), weakref.ref(signals["hidden.text"][0])]
        signals = signals.to("meta")
        gc.collect()
        assert [one() for one in held] == [None, None]
        assert signals["hidden.text"].computed[0].device.type == "meta"

    def test_pinned_memory_of_every_tensor(self, monkeypatch):
        pinned = []
        monkeypatch.setattr(Tensor, "pin_memory", lambda x: pinned.append(x) or x.clone())
        signals = build_signals(tiny.Dual(), DUAL)
        moved = signals.pin_memory()
        for name in signals:
            expected = {x.data_ptr() for x in beside(signals, name)}
            beside(moved, name)
            assert expected <= {x.data_ptr() for x in pinned}
        attention, own = moved[ACROSS][0], signals[ACROSS][0]
        assert {own.query.data_ptr(), own.rows.data_ptr()} <= {x.data_ptr() for x in pinned}
        assert torch.equal(attention.scores(), own.scores())
        assert pin_memory({"teacher": signals})["teacher"].axes(ACROSS) != ()

    def test_detached(self):
        signals = build_signals()
        assert signals["logits"].requires_grad
        assert signals["hidden.joint"][0].requires_grad
        detached = signals.detach()
        assert not any(x.requires_grad for name in detached for x in tensors_of(detached[name]))
        assert_same(detached, signals)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_to_a_gpu_and_back(self):
        signals = build_signals(tiny.Dual(), DUAL).detach()
        there = signals.pin_memory().to("cuda", non_blocking=True)
        assert there[ACROSS][-1].device.type == "cuda"
        assert_same(there.to("cpu"), signals)


class Result(NamedTuple):
    loss: Tensor
    teacher: Signals


def rebuilt(signals, function):
    """As accelerate, Lightning, transformers and torch do to every mapping that they meet."""
    return type(signals)({name: function(value) for name, value in signals.items()})


def walked(x):
    """As Lightning walks: through mappings and sequences, to tensors."""
    if isinstance(x, Mapping):
        return type(x)(OrderedDict([(name, walked(value)) for name, value in x.items()]))
    if isinstance(x, Sequence):
        return type(x)([walked(one) for one in x])
    return x.detach() if hasattr(x, "dtype") else x


class TestRebuilds:
    @pytest.mark.parametrize(
        "rebuild",
        [
            lambda s: rebuilt(s, lambda x: x.detach()),
            walked,
            lambda s: type(s)(OrderedDict((k, v) for k, v in s.items())),
            lambda s: type(s)(dict(s)),
            lambda s: type(s)(s),
            lambda s: type(s)({k: s[k] for k in s.keys()}),  # noqa: SIM118
            lambda s: type(s)(copy.deepcopy(dict(s.detach()))),
            default_convert,
            lambda s: default_convert(Result(torch.zeros(()), s)).teacher,
            lambda s: default_convert({"a": [s]})["a"][0],
        ],
    )
    def test_masks_axes_and_reasons_are_kept(self, rebuild):
        signals = build_signals()
        assert signals.mask("hidden.joint") is not None
        made = rebuild(signals)
        assert type(made) is Signals
        assert_same(made, signals)

    def test_layers_are_rebuilt_from_computed_ones(self):
        layers = build_signals()[ACROSS]
        made = type(layers)([layer.detach() for layer in layers])
        assert torch.equal(made[-1].scores(), layers[-1].scores())
        assert len(made) == 2

    def test_some_names_keep_what_belongs_to_them(self):
        signals = build_signals()
        made = Signals({name: v for name, v in signals.items() if name.startswith("hidden")})
        assert list(made) == ["hidden.joint"]
        assert torch.equal(made.mask("hidden.joint"), signals.mask("hidden.joint"))
        assert made.axes(ACROSS) == ()
        assert made.absent == signals.absent

    def test_what_was_moved_before_it_was_computed_is_known_to_be_there(self):
        signals, _ = lazy_signals()
        signals = Signals(signals, {"hidden.text": torch.ones(2, 3).bool()})
        again = rebuilt(signals.to("meta"), lambda x: x.detach())
        assert again["hidden.text"].computed == ()
        assert again["hidden.text"].device.type == again.mask("hidden.text").device.type == "meta"
        assert again["hidden.text"][0].device.type == "meta"

    @pytest.mark.parametrize("asked", [False, True])
    @pytest.mark.parametrize("layer_by_layer", [False, True])
    def test_what_is_known_follows_the_values_to_their_device(self, asked, layer_by_layer):
        def move(value):
            if layer_by_layer and isinstance(value, Layers):
                return Layers([layer.to("meta") for layer in value])
            return value.to("meta")

        signals = build_signals()
        if asked:
            signals.axes(ACROSS)
        made = rebuilt(signals, move)
        assert made.mask("hidden.joint").device.type == "meta"
        assert {x.device.type for x in tensors_of(made.axes(ACROSS))} == {"meta"}
        assert signals.mask("hidden.joint").device.type == "cpu"

    def test_they_are_kept_when_the_first_signals_are_gone(self):
        signals = build_signals()
        expected, held = signals.mask("hidden.joint").clone(), dict(signals)
        del signals
        gc.collect()
        assert torch.equal(Signals(held).mask("hidden.joint"), expected)
        assert len(Signals(held).axes(ACROSS)) == 2

    def test_a_name_holds_no_values(self):
        value = torch.zeros(2, 3, 4)
        signals = Signals({"hidden.text": value}, {"hidden.text": torch.ones(2, 3).bool()})
        moved = signals.to(torch.float64)
        names, held = [*signals, *moved], weakref.ref(value)
        del value, signals, moved
        gc.collect()
        assert held() is None
        assert names == ["hidden.text"] * 2

    def test_a_name_is_the_plain_string(self):
        (name,) = Signals({"logits": torch.zeros(2, 5)}, {"logits": torch.ones(2).bool()})
        assert name == "logits"
        assert hash(name) == hash("logits")
        assert {name: 1} == {"logits": 1}
        assert f"{name!r} {name}" == "'logits' logits"
        assert json.dumps({name: [name]}) == '{"logits": ["logits"]}'
        assert type(pickle.loads(pickle.dumps(name))) is str
        assert pickle.dumps(name, 5).find(b"torch") == -1

    def test_plain_names_forget(self):
        signals = build_signals()
        made = Signals({str(name): value for name, value in signals.items()})
        assert made.mask("hidden.joint") is None
        assert made.axes(ACROSS) == ()
        assert made.absent == {}

    def test_what_is_said_goes_before_what_is_remembered(self):
        signals = build_signals()
        nothing = torch.zeros(3, 9, dtype=torch.bool)
        made = Signals(dict(signals), {"hidden.joint": nothing}, absent={"logits": "no head"})
        assert made.mask("hidden.joint") is nothing
        assert made.axes(ACROSS) != ()
        assert made.absent == {"logits": "no head", **signals.absent}
        assert "logits" not in made

    def test_a_reason_ends_where_there_is_a_value(self):
        signals = build_signals()
        made = Signals({**signals, "embedding.text": torch.zeros(3, 4)})
        assert made["embedding.text"].shape == (3, 4)
        assert made.absent == {}

    def test_other_examples_are_refused_rather_than_masked_wrongly(self):
        signals = build_signals().only("hidden.joint")
        several = [signals.detach(), build_signals(seed=1).only("hidden.joint").detach()]
        for rebuild in (
            lambda: default_collate(several),
            lambda: rebuilt(signals, lambda x: Layers([y[:2] for y in x])),
            lambda: rebuilt(signals, lambda x: Layers([y.mean(1) for y in x])),
        ):
            with pytest.raises(
                errors.SignalError, match=r"'hidden.joint' was \(3, 9, 16\).*collate_fn"
            ):
                rebuild()
        logits = build_signals().only("logits")  # of which nothing is known besides
        assert rebuilt(logits, lambda x: x[:2])["logits"].shape == (2, 3)

    def test_more_values_bring_what_is_known_of_them(self):
        student, teacher = build_signals(seed=1), build_signals()
        plain = student.with_values({"hidden.joint": [torch.zeros(3, 9, 2)]})
        assert torch.equal(plain.mask("hidden.joint"), student.mask("hidden.joint"))
        theirs = student.with_values(dict(teacher.only("hidden.joint")))
        assert torch.equal(theirs.mask("hidden.joint"), teacher.mask("hidden.joint"))


class TestChanged:
    """``with_values``: what is known of a value holds for the one that replaces it, or is said anew."""

    REAL = torch.tensor([[True, True, False], [True, False, False]])

    @pytest.fixture
    def signals(self):
        axis = dk.TokenAxis("text", valid=self.REAL, special=(0,))
        keys = dk.TokenAxis("image", grid=(2, 2))
        attention = dk.Attention(torch.randn(2, 2, 3, 4), torch.randn(2, 2, 4, 4))
        return dk.Signals(
            {"h": torch.randn(2, 3, 4), "layers": [torch.randn(2, 3, 4)] * 2, "a": attention},
            {"h": self.REAL},
            axes={"h": (axis,), "layers": (axis,), "a": (axis, keys)},
        )

    @pytest.mark.parametrize("name", ["h", "layers"])
    def test_values_of_the_same_tokens_keep_mask_and_axes(self, signals, name):
        value = torch.zeros(2, 3, 7)
        changed = signals.with_values({name: value if name == "h" else [value]})
        assert changed.axes(name)[0].special == (0,)
        assert torch.equal(changed.mask(name), self.REAL)  # of layers, what their axis says
        later = signals.with_values({name: lambda: value})
        assert later.axes(name) == signals.axes(name)

    def test_an_attention_over_the_same_tokens_keeps_its_axes(self, signals):
        other = dk.Attention.from_scores(torch.zeros(2, 5, 3, 4))  # of other heads
        assert signals.with_values({"a": other}).axes("a")[1].grid == (2, 2)
        with pytest.raises(
            errors.SignalError, match=r"'a' was \(2, 2, 3, 4\) and is now \(2, 2, 3, 9\)"
        ):
            signals.with_values({"a": dk.Attention.from_scores(torch.zeros(2, 2, 3, 9))})

    def test_without_token_axes_nothing_is_known_any_more(self, signals):
        changed = signals.with_values({"h": torch.zeros(2, 4), "a": torch.zeros(2, 4)})
        assert changed.mask("h") is None
        assert changed.axes("h") == changed.axes("a") == ()
        term = dk.Term("mse", on="h")
        assert term.eval()(changed, changed) == 0

    @pytest.mark.parametrize("shape", [(2, 2, 4), (3, 3, 4)])
    def test_other_tokens_are_refused_unless_they_are_described(self, signals, shape):
        value = torch.zeros(shape)
        with pytest.raises(
            errors.SignalError, match=r"'h' was \(2, 3, 4\).*axes=\{'h': \(\)\} says"
        ):
            signals.with_values({"h": value})
        real = torch.ones(shape[:2], dtype=torch.bool)
        axis = dk.TokenAxis("text", ids=torch.zeros(shape[:2]))
        changed = signals.with_values({"h": value, "n": value}, {"h": real}, axes={"n": (axis,)})
        assert torch.equal(changed.mask("h"), real)
        assert changed.axes("h") == ()
        assert changed.axes("n") == (axis,)
        assert changed.axes("layers")[0].special == (0,)
        assert signals.with_values({"h": value}, axes={"h": ()}).mask("h") is None

    def test_a_value_that_nobody_computed_is_described_by_its_mask(self):
        later = dk.Signals({"h": lambda: torch.zeros(2, 3, 4)}, {"h": self.REAL})
        with pytest.raises(errors.SignalError, match=r"'h' was \(2, 3\) and is now \(2, 5, 4\)"):
            later.with_values({"h": torch.zeros(2, 5, 4)})
        assert later.with_values({"h": torch.zeros(2)}).mask("h") is None


def saved(x):
    stream = io.BytesIO()
    torch.save(x, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def pickled(x):
    return pickle.loads(pickle.dumps(x))


class TestCopies:
    @pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickled, saved])
    @pytest.mark.parametrize(("model", "tables"), [(tiny.Fusion, FUSION), (tiny.Dual, DUAL)])
    def test_all_is_equal(self, make, model, tables):
        signals = build_signals(model(), tables)
        made = make(signals)
        assert_same(made, signals)
        assert_same(make(made), signals)
        assert signals["logits"].requires_grad  # the graph of the first is left alone
        assert signals["hidden." + ("joint" if tables is FUSION else "text")][0].requires_grad
        assert repr(made) == repr(signals)
        assert len(made.take(slice(1, 3))["logits"]) == 2

    @pytest.mark.parametrize("make", [copy.deepcopy, pickled, saved])
    def test_without_gradient(self, make):
        made = make(build_signals())
        assert not any(x.requires_grad for name in made for x in tensors_of(made[name]))

    def test_a_shallow_copy_shares_what_it_computes(self):
        signals, parts = lazy_signals()
        made = copy.copy(signals)
        assert [one.calls for one in parts] == [0, 0, 0, 0]
        assert made["logits"] is signals["logits"]
        assert parts[0].calls == 1

    def test_the_file_of_one_example_is_no_larger_than_it(self):
        signals = Signals(
            {"hidden.text": [torch.randn(100, 9, 16)]}, {"hidden.text": torch.ones(100, 9).bool()},
            axes={"hidden.text": (TokenAxis("text", ids=torch.zeros(100, 9).long()),)},
        )  # fmt: skip
        one = signals.take(slice(7, 8))
        assert len(pickle.dumps(one)) < 4 * (9 * 16 * 4 + 9 + 9 * 8)
        assert torch.equal(pickled(one)["hidden.text"][0], signals["hidden.text"][0][7:8])

    @pytest.mark.parametrize(
        "make", [copy.deepcopy, pickled, lambda s: rebuilt(s, lambda x: x), walked]
    )
    def test_what_cannot_be_computed_refuses_in_the_copy_too(self, make):
        def refuse():
            raise errors.CaptureError("layer 0 was not kept")

        signals = Signals(
            {"attention.a": lambda: Layers([refuse, torch.ones(2, 3)]), "attention.b": refuse},
            axes={"attention.b": refuse},
        )
        made = make(signals)
        assert list(made) == ["attention.a", "attention.b"]
        assert torch.equal(made["attention.a"][-1], torch.ones(2, 3))
        for ask in (
            lambda: made["attention.a"][0],
            lambda: made["attention.b"],
            lambda: made.axes("attention.b"),
        ):
            with pytest.raises(errors.CaptureError, match="layer 0 was not kept"):
                ask()
        used, kept = made["attention.a"]
        assert torch.equal(kept, torch.ones(2, 3))
        with pytest.raises(errors.CaptureError, match="layer 0 was not kept"):
            used.scores()
        joined = Signals.concatenate([signals, made])
        assert joined["attention.a"][1].shape == (4, 3)
        with pytest.raises(errors.CaptureError, match="layer 0 was not kept"):
            joined["attention.a"][0]

    @pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickled, saved])
    def test_axes_and_layouts(self, make):
        axis = TokenAxis("text", torch.tensor([[True, False]]), (0,), ids=torch.tensor([[7, 8]]))
        made = make(axis)
        assert (made.modality, made.special, made.grid) == ("text", (0,), None)
        assert torch.equal(made.valid, axis.valid)
        assert torch.equal(made.ids, axis.ids)
        layout = DeclarativeAdapter(**DUAL).layout(tiny.batch(2), None)
        copied = make(layout)
        assert torch.equal(copied["text"].valid, layout["text"].valid)
        assert torch.equal(copied["image"]["image"].extents, layout["image"]["image"].extents)

    def test_a_data_loader_with_workers_brings_signals(self):
        signals = build_signals(examples=4).detach()
        examples = [signals.take(slice(i, i + 1)) for i in range(4)]
        loader = DataLoader(
            examples, batch_size=2, collate_fn=Signals.concatenate, num_workers=1,
            multiprocessing_context="fork",
        )  # fmt: skip
        assert_same(Signals.concatenate(list(loader)), signals)


class TestConcatenate:
    @pytest.mark.parametrize("examples", [1, 2, 4])
    @pytest.mark.parametrize("equal", [False, True])
    def test_single_examples_join_to_the_whole(self, examples, equal):
        signals = build_signals(examples=examples)
        if equal:
            signals = signals.take(torch.zeros(examples, dtype=torch.long))
        parts = [signals.take(slice(i, i + 1)) for i in range(examples)]
        joined = Signals.concatenate([pickled(part) for part in parts])
        assert_same(joined, signals)
        assert joined.axes(ACROSS)[0].valid.shape == (examples, 5)

    def test_losses_of_joined_examples_are_those_of_the_whole(self):
        student, teacher = build_signals(tiny.Dual(), DUAL), build_signals()
        joined = Signals.concatenate([pickled(teacher.take(slice(i, i + 1))) for i in range(3)])
        ours, expected = (
            losses.masked_mean(losses.attention_kl(student[ACROSS][-1], side[ACROSS][-1]))
            for side in (joined, teacher)
        )
        assert ours > 0
        torch.testing.assert_close(ours, expected)

    def test_an_entry_for_all_examples_stays_one(self):
        whole = build_signals(tiny.Dual(), DUAL, examples=4)
        image = whole.axes(ACROSS)[1]
        assert (image.extents.shape, image.valid) == ((1, 4, 4), None)
        halves = [whole.take(slice(0, 2)), whole.take(slice(2, 4))]
        joined = Signals.concatenate(halves).axes(ACROSS)
        assert joined[1].extents.shape == (1, 4, 4)
        assert joined[0].valid.shape == (4, 5)
        mixed = Signals.concatenate([whole.take(slice(0, 1)), whole.take(slice(1, 4))])
        assert torch.equal(mixed.axes(ACROSS)[1].extents, image.extents.expand(4, 4, 4))

    def test_entries_for_all_that_differ_become_one_for_each(self):
        parts = [
            Signals(
                {"hidden.image": [torch.zeros(b, 2, 3)]}, {"hidden.image": torch.full((1, 2), keep)},
                axes={"hidden.image": (TokenAxis("image", extents=torch.full((1, 2, 4), float(keep))),)},
            )
            for b, keep in ((2, True), (3, False))
        ]  # fmt: skip
        joined = Signals.concatenate(parts)
        assert joined.mask("hidden.image").tolist() == [[True, True]] * 2 + [[False, False]] * 3
        (axis,) = joined.axes("hidden.image")
        assert axis.extents[:, 0, 0].tolist() == [1, 1, 0, 0, 0]

    def test_a_forward_without_padding_keeps_all_its_tokens(self):
        def part(b, mask):
            axis = TokenAxis("text", mask, (0,))
            masks = {} if mask is None else {"hidden.text": mask}
            return Signals(
                {"hidden.text": [torch.zeros(b, 3, 2)]}, masks, axes={"hidden.text": (axis,)}
            )

        padded = torch.tensor([[True, True, False]])
        for parts in ([part(1, padded), part(2, None)], [part(2, None), part(1, padded)]):
            joined = Signals.concatenate(parts)
            expected = [[True] * 3] * 2
            expected.insert(
                0 if parts[0].mask("hidden.text") is not None else 2, [True, True, False]
            )
            assert joined.mask("hidden.text").tolist() == expected
            assert joined.axes("hidden.text")[0].valid.tolist() == expected
        assert Signals.concatenate([part(1, None), part(2, None)]).mask("hidden.text") is None

    def test_what_one_axis_does_not_know_the_whole_does_not(self):
        known = TokenAxis(
            "text", torch.ones(2, 3).bool(), ids=torch.zeros(2, 3).long(), positions=slice(1, 4)
        )
        unknown = TokenAxis("text", torch.zeros(1, 3).bool(), positions=slice(0, 3))
        joined = TokenAxis.concatenate([known, unknown])
        assert joined.valid.sum(1).tolist() == [3, 3, 0]
        assert joined.ids is None
        assert joined.positions is None
        assert TokenAxis.concatenate([known, known]).positions == slice(1, 4)
        with pytest.raises(errors.ShapeError, match=r"their special is \(\), \(0,\)"):
            TokenAxis.concatenate([known, TokenAxis("text", special=(0,))])
        with pytest.raises(errors.ShapeError, match="no token axes"):
            TokenAxis.concatenate([])

    def test_axes_alone_without_numbers_of_examples(self):
        valid, extents = torch.ones(1, 3).bool(), torch.zeros(1, 3, 4)
        joined = TokenAxis.concatenate([TokenAxis("image", valid, extents=extents)] * 2)
        assert (joined.valid.shape, joined.extents.shape) == ((2, 3), (2, 3, 4))
        alone = TokenAxis.concatenate([TokenAxis("image", extents=extents)] * 2)
        assert alone.extents.shape == (1, 3, 4)

    def test_reasons_are_kept(self):
        parts = [build_signals(seed=seed) for seed in (0, 1)]
        assert Signals.concatenate(parts).absent == {"embedding.text": "a fusion encoder has none"}
        assert parts[0].only("logits").absent == {"embedding.text": "a fusion encoder has none"}

    def test_what_does_not_fit_is_an_error_that_names_it(self):
        signals = build_signals()
        with pytest.raises(errors.SignalError, match="no signals to concatenate"):
            Signals.concatenate([])
        with pytest.raises(errors.SignalError, match=r"number 1 has no 'logits'.*only"):
            Signals.concatenate(
                [signals.only("logits", "hidden.joint"), signals.only("hidden.joint")]
            )
        without = Signals({}, absent={"logits": "no head"})
        with pytest.raises(errors.SignalError, match=r"number 0 has no 'logits' \(no head\)"):
            Signals.concatenate([without, signals.only("logits")])
        longer = Signals({"hidden.joint": [torch.zeros(1, 12, 16)] * 2})
        with pytest.raises(
            errors.ShapeError, match=r"'hidden.joint' is \(3, 9, 16\), \(1, 12, 16\).*Pad"
        ):
            Signals.concatenate([signals.only("hidden.joint"), longer])
        deeper = Signals({"hidden.joint": [torch.zeros(1, 9, 16)] * 3})
        with pytest.raises(errors.ShapeError, match=r"'hidden.joint' has \[2, 3\] layers"):
            Signals.concatenate([signals.only("hidden.joint"), deeper])


class TestTrackable:
    def made_in_inference_mode(self, asked=()):
        with torch.inference_mode():
            signals = build_signals(tiny.Dual(), DUAL)
            for name in asked:
                tensors_of(signals[name])
                signals.axes(name)
        return signals

    @pytest.mark.parametrize("asked", [False, True])
    def test_a_teacher_of_inference_mode_teaches(self, asked):
        names = ["logits", "hidden.text", ACROSS]
        teacher = self.made_in_inference_mode(names if asked else ()).trackable()
        normal = build_signals(tiny.Dual(), DUAL).detach()
        for side in (teacher, normal):
            student = build_signals(tiny.Dual(), DUAL, seed=1)
            loss = losses.kl_divergence(student["logits"], side["logits"]).mean()
            loss = loss + losses.attention_kl(student[ACROSS][-1], side[ACROSS][-1]).mean()
            scaled = student["hidden.text"][0] * side["hidden.text"][0]
            kept = torch.where(side.mask("hidden.text")[..., None], scaled, 0)
            weighted = kept.sum() + (student["logits"].sum() * side.axes(ACROSS)[1].extents).sum()
            (loss + weighted).backward()
        assert not any(x.is_inference() for name in names for x in tensors_of(teacher[name]))
        assert not any(x.is_inference() for name in names for x in beside(teacher, name))
        assert_same(teacher.only(*names), normal.only(*names))

    def test_itself_where_nothing_is_to_be_done(self):
        signals = build_signals()
        signals["logits"], signals[ACROSS][0], signals.axes(ACROSS)
        assert signals.trackable() is signals
        with torch.inference_mode():
            assert self.made_in_inference_mode(["logits"]).trackable()["logits"].is_inference()
            assert signals.trackable() is signals
        once = self.made_in_inference_mode(["logits"]).trackable()
        once["logits"]
        assert once.trackable() is once

    def test_tensors_are_copied_when_they_are_asked_for(self):
        with torch.inference_mode():
            layers = Layers([torch.zeros(2, 3), torch.ones(2, 3)])
            signals = Signals({"hidden.text": layers, "logits": torch.zeros(2)}).take(slice(0, 1))
            signals["hidden.text"][0], signals["hidden.text"][1], signals["logits"]
        teacher = signals.trackable()
        made = teacher["hidden.text"]
        made[1]
        assert list(made._computed) == [1]
        assert signals["hidden.text"].computed[0].is_inference()
