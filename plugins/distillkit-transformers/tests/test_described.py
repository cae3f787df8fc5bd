"""Families that files describe: what they say is true, and what is not true is found out."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from distillkit_transformers.described import Described
from distillkit_transformers.listing import adapter_tables, listed

import distillkit as dk
from distillkit import testing

from . import described_families, families, family_table, uncovered

DOCUMENT = Path(__file__).parents[3] / "docs/reference/families.md"
README = Path(__file__).parents[1] / "README.md"
BUILDERS = described_families.BUILDERS
needs_its_version = pytest.mark.skipif(
    not transformers.__version__.startswith(uncovered.MADE_WITH),
    reason="the table is of another version of transformers",
)


def test_a_tiny_model_stands_for_every_file():
    assert BUILDERS.keys() == listed().keys()


def test_the_families_are_counted_where_they_are_told():
    count = len(family_table.SPECS)
    assert count >= 55
    assert f"{count} families" in README.read_text(encoding="utf-8")
    assert f"{count} families" in DOCUMENT.read_text(encoding="utf-8")


@needs_its_version
@pytest.mark.parametrize("name", family_table.SPECS)
def test_the_table_says_what_is_seen(name):
    line = family_table.line(name)
    assert line in DOCUMENT.read_text(encoding="utf-8").splitlines()
    # the listing of recipes takes a plugin's word for it; logits are of classes with a head
    seen = set(line.split(" | ")[3].replace("`", "").split(", "))
    assert seen <= set(family_table.SPECS[name].offers) <= seen | {"logits"}


@pytest.mark.parametrize("name", listed())
def test_a_file_tells_the_truth(name):
    results = testing.check_adapter(BUILDERS[name])
    failed = {(name, one.name) for one in results if one.failed}
    assert failed == {one for one in family_table.FALSE_ALARMS if one[0] == name}, results


@pytest.mark.parametrize("name", listed())
def test_it_is_found_by_the_class_and_has_hidden_states(name):
    model, batch = BUILDERS[name]()
    backbone = dk.Backbone(model)
    assert isinstance(backbone.adapter, Described)
    signals = backbone.signals(batch)
    streams = [signal for signal in signals if signal.startswith("hidden.")]
    assert streams
    for signal in streams:
        stream = signal.removeprefix("hidden.")
        ends = {
            "joint": ("attention.joint", 2), "text": ("attention.text_to_image", 2),
            "image": ("attention.text_to_image", 3),
        }  # fmt: skip
        layers = signals[signal]
        whole = f"attention.{stream}"
        attention, axis = (whole, 2) if whole in signals else ends[stream]
        if attention in signals:
            assert layers[-1].shape[:2] == (
                len(batch["attention_mask"]), signals[attention][-1].shape[axis],
            )  # fmt: skip


@needs_its_version
def test_every_other_folder_has_a_reason():
    assert uncovered.uncovered() <= uncovered.REASONS.keys()
    text = DOCUMENT.read_text(encoding="utf-8")
    assert "\n".join(uncovered.lines()) in text


# ------------------------------------------------------------------------------ planted faults


def broken(name, stream, run, **changed):
    """A family whose file says something else of one run."""

    def factory():
        model, batch = BUILDERS[name]()
        tables = copy.deepcopy(dict(adapter_tables(name)))
        runs = tables["tokens"][stream]
        kept = {k: v for k, v in runs[run].items() if k not in changed}
        runs[run] = {**kept, **{k: v for k, v in changed.items() if v is not None}}
        return model, batch, Described(tables, model)

    return factory


@pytest.mark.parametrize(
    ("name", "stream", "run", "changed", "caught_by"),
    [
        ("owlvit", "image", 0, {"special": [-1]}, "a_patch_moves_its_own_cell"),
        ("altclip", "image", 0, {"special": None}, "layout_covers_every_position_once"),
        ("janus", "joint", 0, {"patch": None, "grid": [2, 8]}, "a_patch_moves_its_own_cell"),
        (
            "llava_next",
            "joint",
            1,
            {"grid": [5, 4], "newlines": None},
            "image_moves_only_image_tokens",
        ),
        ("tipsv2", "image", 1, {"length": 2}, "layout_covers_every_position_once"),
        ("git", "joint", 0, {"special": None}, "layout_covers_every_position_once"),
        ("mistral3", "joint", 0, {"equals": 50}, "image_moves_only_image_tokens"),
        ("kosmos2", "joint", 0, {"equals": 0}, "image_moves_only_image_tokens"),
    ],
)
def test_a_file_that_lies_is_found_out(name, stream, run, changed, caught_by):
    results = testing.check_adapter(broken(name, stream, run, **changed))
    assert caught_by in [one.name for one in results if one.failed]


def test_the_same_without_a_lie():
    results = testing.check_adapter(broken("owlvit", "image", 0))
    assert [str(one) for one in results if one.failed] == []


# ------------------------------------------------------------- what a configuration completes


def test_numbers_of_the_configuration():
    model, _ = BUILDERS["qianfan_ocr"]()
    image = dk.adapter_for(model).tables["tokens"]["joint"][0]
    assert image["patch"] == (8, 8)
    assert image["merge"] == 2  # of 1 / 0.5
    assert image["equals"] == (model.config.image_token_id,)
    model, _ = BUILDERS["got_ocr2"]()
    assert dk.adapter_for(model).tables["tokens"]["joint"][0]["grid"] == (4, 4)


def test_markers_that_a_configuration_has_not_are_no_run():
    model, _ = BUILDERS["lfm2_vl"]()
    found = [run["modality"] for run in dk.adapter_for(model).tables["tokens"]["joint"]]
    assert found == ["image", "text"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("config.nothing or also.nothing", "has no nothing or also.nothing: describe the model"),
        ("sqrt config.vocab_size", "vocab_size of LlavaLike is 99, where .* no whole number"),
        ("1 / config.ratio", "ratio of LlavaLike is 0.3, where .* no whole number"),
    ],
)
def test_numbers_that_are_not_there(value, message):
    class LlavaLike(torch.nn.Module):
        config = type("Config", (), {"vocab_size": 99, "ratio": 0.3})()

    tables = {"tokens": {"joint": [{"modality": "image", "length": value}]}}
    with pytest.raises(dk.errors.SignalError, match=message):
        Described(tables, LlavaLike())


def test_an_unknown_family():
    with pytest.raises(dk.errors.UnknownNameError, match="owlvit"):
        dk.adapter_for(torch.nn.Linear(2, 2), "owlvitt")


class TestEntriesThatABatchMayHave:
    def layout(self, name, **entries):
        model, batch = BUILDERS[name]()
        batch = {**batch, **entries}
        backbone = dk.Backbone(model)
        return backbone.trace(batch).layout, batch

    def test_without_a_mask_every_token_is_real(self):
        model, batch = BUILDERS["owlvit"]()
        del batch["attention_mask"]
        assert dk.Backbone(model).trace(batch).layout["text"].valid is None

    def test_places_of_words_and_patches(self):
        offsets = torch.arange(14).view(1, 7, 2).repeat(2, 1, 1)
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 1.0, 1.0]])
        layout, _ = self.layout("owlvit", offset_mapping=offsets, image_boxes=boxes)
        assert torch.equal(layout["text"]["text"].extents[0, 3], offsets[0, 3])
        image = layout["image"]["image"].extents
        assert image[1, 1].tolist() == [0.0, 0.5, 0.25, 0.625]  # the first patch, after [CLS]

    def test_places_that_cannot_be_used_are_no_stray_entries(self):
        model, batch = BUILDERS["aria"]()
        batch["image_boxes"] = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
        other, _ = BUILDERS["aria"]()
        term = {"loss": "kl_divergence", "on": ["logits"]}
        distiller = dk.Distiller(model, other, dk.Recipe(name="logits", terms=[term]))
        assert distiller(batch).loss.isfinite()


def test_a_class_without_a_head_says_so():
    model, batch = BUILDERS["grounding_dino"]()
    with pytest.raises(dk.errors.SignalError, match="has no field 'logits'"):
        dk.Backbone(model).signals(batch)["logits"]


@pytest.mark.parametrize(
    ("size", "grid"), [((32, 32), [8, 8]), ((16, 32), [4, 8]), ((64, 32), [8, 4])]
)
def test_tiles_lose_what_their_padding_fills(size, grid):
    """What the layout says is what the model itself makes of the tiles."""
    model, _ = BUILDERS["llava_next"]()
    model.config.image_grid_pinpoints = [[64, 64]]
    sizes = torch.tensor([size] * 2)
    counts = 16 + grid[0] * (grid[1] + 1)
    batch = described_families.prompts(
        counts, pixel_values=torch.randn(2, 5, 3, 32, 32), image_sizes=sizes
    )
    layout = dk.Backbone(model).trace(batch).layout
    assert layout["joint"]["image"].grid[0].tolist() == [[4, 4], grid]


def test_families_by_file_teach_those_by_code():
    """16 patches of a teacher, carried onto a student's 4 tokens by where they lie."""
    student, batch = families.internvl()
    teacher, _ = BUILDERS["janus"]()
    ids, seen = batch["input_ids"], batch["attention_mask"]
    before, _, after = ids.tensor_split([2, 6], 1)
    of_teacher = torch.full((2, 16), teacher.config.image_token_id)
    batch |= {
        "teacher_input_ids": torch.cat([before, of_teacher, after], 1),
        "teacher_attention_mask": torch.cat([seen[:, :1].expand(2, 12), seen], 1),
        "image_boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2),
    }
    term = {"loss": "attention_kl", "on": ["attention.text_to_image"], "align": ["overlap"],
            "options": {"heads": "mean"}}  # fmt: skip
    distiller = dk.Distiller(student, teacher, dk.Recipe(name="patches", terms=[term]))
    result = distiller(batch)
    result.loss.backward()
    assert result.loss.isfinite()


def test_one_image_of_each_example_has_a_box_and_several_say_which():
    model, batch = BUILDERS["qwen2_vl"]()
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    image = dk.Backbone(model).trace({**batch, "image_boxes": boxes}).layout["joint"]["image"]
    assert image.extents[0, 1].tolist() == [0.0, 0.5, 0.5, 1.0]
    twice = torch.cat([batch["input_ids"][:1, :-1], batch["input_ids"][1:, :]], 1)
    several = {
        **batch, "input_ids": twice, "attention_mask": torch.ones_like(twice),
        "mm_token_type_ids": (twice == model.config.image_token_id).int(), "image_boxes": boxes,
    }  # fmt: skip
    image = dk.Backbone(model).trace(several).layout["joint"]["image"]
    assert image.grid.tolist() == [[[2, 2], [2, 2]]]
    assert image.extents[0, 4].tolist() == [1.0, 0.0, 0.0, 2.0, 0.5, 0.5]
