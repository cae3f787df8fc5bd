"""The plugin as a distribution: names, references, structure that is found or refused."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import transformers
from distillkit_transformers import plugin
from distillkit_transformers.structure import attention_pattern, first_part, part
from torch import nn

import distillkit as dk

from . import families

SPECS = {spec.name: spec for spec in plugin.distillkit_adapters()}


def test_listing_loads_nothing_heavy():
    code = (
        "import sys, distillkit_transformers.plugin as p; list(p.distillkit_adapters()); "
        "print([n for n in ('torch', 'transformers', 'numpy', 'pydantic') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", SPECS)
def test_every_reference_resolves_to_a_factory(name):
    module, _, attribute = SPECS[name].factory.partition(":")
    factory = getattr(__import__(module, fromlist=[attribute]), attribute)
    assert callable(factory)
    assert SPECS[name].summary.endswith(".")
    where = SPECS[name].matches.split(".")
    if where[0] == "transformers":
        assert hasattr(transformers.models, where[2])
    else:  # a model of this plugin's own
        assert hasattr(importlib.import_module(".".join(where[:-1])), where[-1])


def test_names_are_listed_by_distillkit():
    command = [sys.executable, "-m", "distillkit", "adapters"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {line.split()[0] for line in listed.splitlines() if line.strip()}
    assert SPECS.keys() <= names


@pytest.mark.parametrize("name", ["vilt", "clip", "llava"])
def test_an_adapter_can_be_named(name):
    model, _ = families.FAMILIES[name]()
    found = dk.adapter_for(model, name)
    assert found.streams == dk.adapter_for(model).streams


class TestStructure:
    def test_several_stacks_are_listed(self):
        model, _ = families.blip_matching()
        with pytest.raises(dk.errors.CaptureError) as raised:
            attention_pattern(model, "text_encoder")
        assert "'text_encoder.encoder.layer.*.attention.self'" in str(raised.value)
        assert "'text_encoder.encoder.layer.*.crossattention.self'" in str(raised.value)

    def test_no_stack_is_an_error_that_lists_what_is_there(self):
        model, _ = families.clip()
        with pytest.raises(
            dk.errors.CaptureError, match=r"found none.*text_model\.encoder\.layers\.\*\.self_attn"
        ):
            attention_pattern(model, "text_model", within="crossattention")
        with pytest.raises(dk.errors.CaptureError, match="attention modules there: none"):
            attention_pattern(nn.Sequential(nn.Linear(2, 2)))

    def test_parts(self):
        model, _ = families.clip()
        assert first_part(model, ("vision_tower", "vision_model")) == "vision_model"
        with pytest.raises(
            dk.errors.CaptureError, match="has none of the parts 'a', 'b'; it has 'text_model'"
        ):
            first_part(model, ("a", "b"))
        with pytest.raises(dk.errors.CaptureError, match="no part 'visual'"):
            part(model, "visual")

    def test_a_decoder_without_image_token(self):
        model, _ = families.llava()
        model.config = type("Config", (), {})()
        with pytest.raises(dk.errors.SignalError, match="names no image token"):
            dk.adapter_for(model)


class TestAdapt:
    """A registered adapter for a part of a model of one's own."""

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.clip, _ = families.clip()
            self.head = nn.Linear(16, 5)

        def forward(self, input_ids, pixel_values, attention_mask=None):
            found = self.clip(
                input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask
            )
            return self.head(found.text_embeds * found.image_embeds)

    def run(self, **options):
        model = self.Wrapper()
        adapter = dk.adapt(model, at="clip", **options)
        batch = families.pair()
        with dk.capture(model, *adapter.streams.values(), outputs=adapter.outputs) as record:
            output = model(**adapter.inputs(batch))
            signals = adapter.signals(record, output, adapter.layout(batch, record))
        return record, signals

    def test_signals_of_the_part_and_logits_of_the_head(self):
        record, signals = self.run(logits="head")
        assert signals["logits"].shape == (2, 5)
        assert signals["embedding.text"].shape == (2, 16)
        cross = signals["attention.text_to_image"][-1]
        text = record["clip.text_model.encoder.layers.1.self_attn"].query
        assert cross.query is text or bool((cross.query == text).all())

    def test_without_logits_the_error_says_how(self):
        _, signals = self.run()
        with pytest.raises(
            dk.errors.SignalError, match=r'dk\.adapt\(model, at="\.\.\.", logits="head"\)'
        ):
            signals["logits"]

    def test_a_part_that_is_not_there(self):
        with pytest.raises(dk.errors.CaptureError, match="no module 'clap'; did you mean 'clip'"):
            dk.adapt(self.Wrapper(), "clip", at="clap")

    def test_a_field_that_is_neither_module_nor_output(self):
        with pytest.raises(dk.errors.SignalError, match="has no field 'heads'"):
            self.run(logits="heads")
