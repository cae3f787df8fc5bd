"""Real architectures from adapter files alone; the kit finds nothing wrong with any of them."""

from __future__ import annotations

import pytest

import distillkit as dk
from distillkit import testing
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
