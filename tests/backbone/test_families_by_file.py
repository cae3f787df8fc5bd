"""Real architectures from adapter files alone; the kit finds nothing wrong with any of them."""

from __future__ import annotations

import copy

import pytest
import torch

import distillkit as dk
from distillkit import testing
from tests.support import zoo
from tests.support.families_by_file import FILES, case

IN_PATCHES = ("siglip2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize("name", FILES)
def test_a_file_tells_the_truth(name):
    results = {one.name: one for one in testing.check_adapter(case(name))}
    assert [str(one) for one in results.values() if one.failed] == []
    cells = results["a_patch_moves_its_own_cell"]
    if name in IN_PATCHES:
        assert "holds patches and no picture" in cells.seen
    elif name == "got_ocr2":  # its fresh weights let no image through
        assert cells.unverified
    elif name in ("idefics2", "aria"):  # resamplers
        assert cells.seen == "not applicable: no patch grid is declared"
    else:
        assert cells.passed, cells
        assert "each moves its own patch alone" in cells.seen


def test_images_of_several_sizes_and_left_padding():
    """Two images in the first text, one in the second, whose padding is on the left."""

    def factory():
        model, _ = zoo.build("qwen2_5_vl")
        image = zoo.IMAGE_TOKEN
        texts = [
            [1, 3, *[image] * 4, 4, 8, 3, *[image] * 8, 4, 9, 10],
            [0] * 11 + [1, 3, *[image] * 4, 4, 11, 12],
        ]
        ids = torch.tensor(texts)
        batch = {
            "input_ids": ids,
            "attention_mask": (ids != 0).long(),
            "pixel_values": zoo.random(16 + 32 + 16, 3 * 2 * zoo.PATCH * zoo.PATCH),
            "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 8], [1, 4, 4]]),
            "mm_token_type_ids": (ids == image).int(),
        }
        tables = copy.deepcopy(FILES["qwen2_5_vl"])
        tables["tokens"]["joint"][0]["images"] = True
        tables["tokens"]["joint"][-1]["special_ids"] = [1]
        return model, batch, dk.DeclarativeAdapter(**tables)

    results = {one.name: one for one in testing.check_adapter(factory)}
    assert [str(one) for one in results.values() if one.failed] == []
    assert results["a_batch_of_one_agrees"].seen == "attention.text_to_image"
    assert "16 patches" in results["a_patch_moves_its_own_cell"].seen


LIES = {
    "llava": ("grid", [2, 8]),
    "internvl": ("grid", [1, 4]),
    "clip": ("special", [-1]),
    "siglip": ("grid", [8, 2]),
    "pixtral": ("grid", [4, 1]),
}


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_is_found_out(name):
    key, value = LIES[name]
    tables = FILES[name]
    stream = "joint" if "joint" in tables["tokens"] else "image"
    first, *others = tables["tokens"][stream]
    replaced = ("grid", "patch", "merge") if key == "grid" else (key,)
    kept = {k: v for k, v in first.items() if k not in replaced}
    tokens = {**tables["tokens"], stream: [{**kept, key: value}, *others]}

    def factory():
        model, batch, _ = case(name)()
        return model, batch, dk.DeclarativeAdapter(**{**tables, "tokens": tokens})

    assert any(one.failed for one in testing.check_adapter(factory))


def test_they_teach_each_other():
    """Placed by their boxes, 16 patches of a tower are carried onto 4 of a decoder."""
    student, batch, files = case("clip")()
    teacher, of_teacher, teachers_file = case("internvl")()
    batch = {**batch, **{f"teacher_{k}": v for k, v in of_teacher.items() if k != "pixel_values"}}
    batch["pixel_values"] = of_teacher["pixel_values"]
    words = {"student_" + k: batch.pop(k) for k in ("input_ids", "attention_mask")}
    batch |= words
    term = {"loss": "attention_kl", "on": ["attention.text_to_image"], "align": ["overlap"],
            "options": {"heads": "mean"}}  # fmt: skip
    count = of_teacher["input_ids"].shape[1] - 4  # its words, of which the student has 7
    batch["student_input_ids"] = batch["student_input_ids"][:, :count]
    batch["student_attention_mask"] = batch["student_attention_mask"][:, :count]
    distiller = dk.Distiller(
        student, teacher, dk.Recipe(name="patches", terms=[term]),
        student_adapter=files, teacher_adapter=teachers_file,
    )  # fmt: skip
    result = distiller(batch)
    assert result.loss.isfinite()
    result.loss.backward()
