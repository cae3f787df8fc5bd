"""A model, its adapter and its capture as one thing; and what a model is called with."""

from __future__ import annotations

import copy
import functools
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import distillkit as dk
from distillkit import errors
from tests.support import tiny


def adapter(**changes):
    return dk.DeclarativeAdapter(**{**tiny.DUAL_TABLES, **changes})


def backbone_of(model=None, **changes):
    torch.manual_seed(0)
    return dk.Backbone(model or tiny.Dual().eval(), adapter(**changes))


def left_on(model):
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def last(signals, name="attention.text_to_image"):
    return signals[name][-1].scores()


class TestRun:
    def test_output_and_signals_of_a_batch(self):
        backbone, batch = backbone_of(), tiny.batch()
        output, signals = backbone.run(batch)
        plain = backbone.model(**{name: batch[name] for name in tiny.INPUTS})
        assert torch.equal(output.logits, plain.logits)
        assert torch.equal(signals["logits"], plain.logits)
        assert [one.shape for one in signals["attention.text"]] == [(3, 4, 5, 5)] * 2
        assert last(signals).shape == (3, 4, 5, 4)
        assert not left_on(backbone.model)

    def test_each_run_keeps_its_own_record(self):
        backbone = backbone_of()
        first, second = (backbone.signals(tiny.batch(seed=seed)) for seed in (0, 1))
        assert not torch.equal(last(first), last(second))
        assert torch.equal(last(first), last(backbone.signals(tiny.batch(seed=0))))

    def test_no_more_than_what_is_wanted_is_kept(self):
        backbone, batch = backbone_of(), tiny.batch()
        whole = backbone.signals(batch)
        _, some = backbone.run(batch, wanted={"attention.text": frozenset({0})})
        assert torch.equal(some["attention.text"][0].scores(), whole["attention.text"][0].scores())
        assert torch.equal(last(some, "attention.image"), last(whole, "attention.image"))
        with pytest.raises(errors.CaptureError, match=r"'image\.blocks\.0' was not kept"):
            some["attention.image"][0]

    def test_an_adapter_without_sources_keeps_every_layer(self):
        class Plain:
            streams, outputs, returns = tiny.DUAL_TABLES["streams"], (), ()

            def __init__(self):
                self._file = adapter()

            def __getattr__(self, name):
                if name in ("inputs", "layout", "signals"):
                    return getattr(self._file, name)
                raise AttributeError(name)

        backbone = dk.Backbone(tiny.Dual().eval(), Plain())
        _, signals = backbone.run(tiny.batch(), wanted={"attention.text": frozenset({-1})})
        assert signals["attention.image"][0].shape == (3, 4, 4, 4)

    def test_closed_it_says_so(self):
        backbone = backbone_of()
        backbone.close()
        backbone.close()
        with pytest.raises(errors.CaptureError, match="this backbone is closed"):
            backbone.run(tiny.batch())

    def test_modules_that_were_replaced_are_found_again(self):
        backbone, batch = backbone_of(), tiny.batch()
        before = last(backbone.signals(batch))
        backbone.model.text = copy.deepcopy(backbone.model.text)
        nn.init.zeros_(backbone.model.text.blocks[1].qkv.weight)
        after = last(backbone.signals(batch))
        assert not torch.equal(before, after)
        backbone.model.text = nn.Identity()
        with pytest.raises(errors.CaptureError, match=r"'text\.blocks\.\*' matches no module"):
            backbone.signals(batch)

    def test_what_it_offers_is_a_table(self):
        check = backbone_of().check(tiny.batch())
        assert check.passed
        assert "attention.text_to_image  2       (b=3, h=4, q=5, k=4)" in str(check)
        assert "nothing reads 'labels'" in str(check)
        without = backbone_of(tokens={"image": [tiny.IMAGE]}).check(tiny.batch())
        assert not without.passed
        assert "! attention.text: " in str(without)

    def test_two_threads_share_one_model(self):
        model = tiny.Dual().eval()
        batches = [tiny.batch(seed=seed) for seed in range(2)]
        expected = [last(backbone_of(model).signals(batch)) for batch in batches]
        backbones = [backbone_of(model), backbone_of(model)]
        wrong = []

        def repeat(i, backbone):
            for _ in range(40):
                with torch.no_grad():
                    found = last(backbone.signals(batches[i]))
                if not torch.equal(found, expected[i]):
                    wrong.append(i)

        for pair in (backbones, [backbones[0]] * 2):
            threads = [threading.Thread(target=repeat, args=one) for one in enumerate(pair)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []
        assert not left_on(model)

    def test_copies_and_pickles_watch_their_own_model(self):
        backbone, batch = backbone_of(), tiny.batch()
        expected = last(backbone.signals(batch))
        for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert twin.model is not backbone.model
            assert torch.equal(last(twin.signals(batch)), expected)
            nn.init.zeros_(twin.model.words.weight)
            assert not torch.equal(last(twin.signals(batch)), expected)
        assert torch.equal(last(backbone.signals(batch)), expected)

    @pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_an_interrupt_leaves_nothing_behind(self, kind):
        backbone, batch = backbone_of(), tiny.batch()

        def stop(*_):
            raise kind("stop")

        handle = backbone.model.text.blocks[1].out.register_forward_hook(stop)
        with pytest.raises(kind, match="stop"):
            backbone.run(batch)
        handle.remove()
        assert torch.overrides._get_current_function_mode_stack() == []
        assert not left_on(backbone.model)
        assert last(backbone.signals(batch)).isfinite().any()

    def test_an_empty_batch_of_a_model_that_cannot_run_on_it(self):
        model, batch = tiny.Dual().eval(), {n: x[:0] for n, x in tiny.batch().items()}
        assert last(backbone_of(model).signals(batch)).shape == (0, 4, 5, 4)
        model.head.register_forward_hook(lambda *_: torch.cat([]))
        with pytest.raises(errors.SignalError, match="holds no example, and Dual cannot run on"):
            backbone_of(model).signals(batch)
        with pytest.raises(ValueError, match="non-empty list"):
            backbone_of(model).signals(tiny.batch())

    def test_under_inference_mode(self):
        backbone, batch = backbone_of(), tiny.batch()
        with torch.inference_mode():
            signals = backbone.signals(batch)
            assert backbone.check(batch).passed
            assert dk.find_attention(backbone.model, **{n: batch[n] for n in tiny.INPUTS})
        assert torch.equal(last(signals), last(backbone.signals(batch)).detach())


class TestRecord:
    def record(self):
        model = tiny.Dual()
        with dk.capture(model, "text.blocks.*", outputs=["head"]) as record:
            model(**{name: tiny.batch()[name] for name in tiny.INPUTS})
        return record

    def test_it_is_a_mapping_over_the_chosen_modules(self):
        record = self.record()
        assert list(record) == ["text.blocks.0", "text.blocks.1"]
        assert len(record) == 2
        assert "text.blocks.1" in record
        assert "head" not in record
        assert dict(record)["text.blocks.0"].shape == (3, 4, 5, 5)
        assert record.get("head") is None
        assert repr(record) == "Record('text.blocks.0', 'text.blocks.1'; outputs of 'head')"

    def test_it_is_read_and_not_written(self):
        record = self.record()
        with pytest.raises(AttributeError, match="read, not written"):
            record.active = True
        assert not {"start", "add_output", "keep_score"} & set(dir(record))
        with pytest.raises(errors.CaptureError, match="keep what you need"):
            pickle.dumps(record)

    def test_layers_are_read_one_by_one(self):
        layers = self.record().layers("text.blocks.*")
        assert len(layers) == 2
        assert layers[-1].shape == (3, 4, 5, 5)
        assert len(layers[1:]) == 1
        assert repr(layers) == "RecordedLayers('text.blocks.0', 'text.blocks.1')"

    def test_a_call_that_was_not_made(self):
        with pytest.raises(errors.CaptureError, match=r"'text\.blocks\.0#1' is call 1"):
            self.record().layers("text.blocks.*#1")[0]


class Passing(nn.Module):
    """A wrapper of nobody's."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class PassingOn(tiny.Dual):
    """Names some arguments and passes the others on."""

    def forward(self, ids, pixels, **kwargs):
        return super().forward(ids=ids, pixels=pixels, **kwargs)


class Unmasked(tiny.Dual):
    """Takes no mask."""

    def forward(self, ids, pixels):
        return super().forward(ids, torch.ones_like(ids, dtype=torch.bool), pixels)


class Rest(tiny.Dual):
    """Takes what it is given."""

    def forward(self, ids, pixels, **rest):
        self.seen = set(rest)
        return tiny.Dual.forward(self, ids, rest.get("mask", ids > -1), pixels)


def masked(attention):
    keep = attention.keep()
    return keep is not None and not bool(keep.all())


class TestArguments:
    @pytest.mark.parametrize(
        "wrapped",
        [Passing, AveragedModel, lambda m: Passing(Passing(m)), nn.DataParallel,
         functools.partial(torch.compile, backend="eager")],
        ids=["passing", "averaged", "twice", "data_parallel", "compiled"],
    )  # fmt: skip
    def test_wrappers_are_looked_through(self, wrapped):
        torch.manual_seed(0)
        model, batch = tiny.Dual().eval(), tiny.batch()
        tables = {k: v for k, v in tiny.DUAL_TABLES.items() if k != "inputs"}
        plain = dk.Backbone(model, dk.DeclarativeAdapter(**tables)).signals(batch)
        signals = dk.Backbone(wrapped(model), dk.DeclarativeAdapter(**tables)).signals(batch)
        assert torch.equal(last(plain), last(signals))

    def test_the_name_with_the_wrapper_finds_the_same(self):
        model = Passing(tiny.Dual().eval())
        streams = {"text": "inner.text.blocks.*", "image": "inner.image.blocks.*"}
        signals = backbone_of(model, streams=streams).signals(tiny.batch())
        assert len(signals["attention.text"]) == 2
        part = dk.adapt(model, adapter(), at="inner")
        assert torch.equal(last(dk.Backbone(model, part).signals(tiny.batch())), last(signals))

    def test_what_an_overridden_forward_takes_is_passed(self):
        tables = {k: v for k, v in tiny.DUAL_TABLES.items() if k != "inputs"}
        backbone = dk.Backbone(PassingOn(), dk.DeclarativeAdapter(**tables))
        assert masked(backbone.signals(tiny.batch())["attention.text"][-1])

    def test_what_the_layout_names_reaches_a_forward_with_kwargs(self):
        tables = {k: v for k, v in tiny.DUAL_TABLES.items() if k != "inputs"}
        model = Rest()
        dk.Backbone(model, dk.DeclarativeAdapter(**tables)).run(tiny.batch())
        assert model.seen == {"mask"}

    def test_inputs_win(self):
        model = Rest()
        inputs = {**tiny.INPUTS, "flag": "labels"}
        backbone_of(model, inputs=inputs).run(tiny.batch())
        assert model.seen == {"mask", "flag"}
        part = dk.adapt(model, adapter(), inputs={"flag": "labels"})
        dk.Backbone(model, part).run(tiny.batch())
        assert model.seen == {"mask", "flag"}

    def test_an_argument_that_forward_does_not_take(self):
        with pytest.raises(errors.SignalError, match="argument 'pixel'.*did you mean 'pixels'"):
            backbone_of(inputs={**tiny.INPUTS, "pixel": "pixels"})

    def test_a_mask_that_does_not_reach_the_model(self):
        tables = {k: v for k, v in tiny.DUAL_TABLES.items() if k != "inputs"}
        with pytest.raises(errors.SignalError, match="'mask'.*Unmasked is not called with it"):
            dk.Backbone(Unmasked(), dk.DeclarativeAdapter(**tables)).run(tiny.batch())
        known = {**tiny.TEXT, "unmasked": True}
        tables["tokens"] = {**tables["tokens"], "text": [known]}
        signals = dk.Backbone(Unmasked(), dk.DeclarativeAdapter(**tables)).signals(tiny.batch())
        assert not masked(signals["attention.text"][-1].with_rows(None))

    def test_an_entry_that_is_none_is_absent(self):
        model, batch = Rest(), {**tiny.batch(), "mask": None}
        signals = backbone_of(model).signals(batch)
        assert model.seen == set()
        assert not masked(signals["attention.text"][-1])

    def test_the_number_of_items_reaches_a_model_that_takes_it(self):
        model, batch = Rest(), {**tiny.batch(), "num_items_in_batch": torch.tensor(7)}
        backbone_of(model).run(batch)
        assert model.seen == {"mask", "num_items_in_batch"}
        backbone_of(tiny.Dual()).run(batch)
