"""Families of transformers and their adapter files, as tables: tests read them by name.

The models are those of ``zoo``. A file says no more than its model needs: the marks of a decoder's
image, or the runs of its two towers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import distillkit as dk

from . import zoo

Run = dict[str, Any]

WORDS: Run = {"modality": "text", "length": "input_ids", "mask": "attention_mask"}
IMAGE: Run = {"modality": "image", "uncropped": True}
PATCHES: Run = {**IMAGE, "patch": zoo.PATCH}
TOWER = "vision_model.encoder.layers.*.self_attn"


def decoder(
    image: Run | list[Run],
    *,
    pattern: str = "model.language_model.layers.*.self_attn",
    marked: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Image tokens where a placeholder stands among the words; markers that are no words."""
    runs = image if isinstance(image, list) else [image]
    marks = {"where": "input_ids", "equals": zoo.IMAGE_TOKEN}
    markers = [{"modality": "marker", "where": "input_ids", "equals": list(marked)}] * bool(marked)
    tokens = [*({**run, **marks} for run in runs), *markers, WORDS]
    causal = {"attention.image_to_text": "a decoder's image comes before its words"}
    return {"streams": {"joint": pattern}, "logits": "logits", "tokens": {"joint": tokens},
            "absent": causal}  # fmt: skip


def towers(image: list[Run], *, text: str, pattern: str = TOWER, words: Run = WORDS) -> Any:
    """A text and an image tower."""
    return {
        "streams": {"text": text, "image": pattern},
        "tokens": {"text": [words], "image": image},
    }


CLIP_TEXT = "text_model.encoder.layers.*.self_attn"
CLASS_FIRST = [{**PATCHES, "special": [0]}]
MERGED = {**PATCHES, "merge": 2}
QWEN = {**IMAGE, "grid": "image_grid_thw", "merge": 2}
LANGUAGE = "model.text_model.layers.*.self_attn"

FILES: dict[str, dict[str, Any]] = {
    "altclip": towers(CLASS_FIRST, text="text_model.**.attention.self"),
    "chinese_clip": towers(CLASS_FIRST, text="text_model.**.attention.self"),
    "clip": towers(CLASS_FIRST, text=CLIP_TEXT),
    "metaclip_2": towers(CLASS_FIRST, text=CLIP_TEXT),
    "siglip": towers([PATCHES], text=CLIP_TEXT),
    "siglip2": towers(
        [{**IMAGE, "length": "pixel_values", "grid": "spatial_shapes",
          "mask": "pixel_attention_mask"}], text=CLIP_TEXT,
    ),
    "owlvit": towers(CLASS_FIRST, text=CLIP_TEXT),
    "llava": decoder(PATCHES),
    "llava_next": decoder(
        [{**IMAGE, "grid": [4, 4]}, {**IMAGE, "grid": [4, 4], "newlines": True}]
    ),
    "qwen2_vl": decoder(QWEN, marked=(3, 4)),
    "qwen2_5_vl": decoder(QWEN, marked=(3, 4)),
    "qwen3_vl": decoder(QWEN, marked=(3, 4)),
    "idefics2": decoder({"modality": "image", "length": 4, "nowhere": True}, pattern=LANGUAGE),
    "idefics3": decoder(MERGED, pattern=LANGUAGE),
    "smolvlm": decoder(MERGED, pattern=LANGUAGE),
    "internvl": decoder(MERGED),
    "pixtral": decoder({**IMAGE, "grid": "image_sizes", "patch": zoo.PATCH, "merge": 2}),
    "aria": decoder({"modality": "image", "length": 4, "nowhere": True}),
    "janus": decoder(PATCHES),
    "got_ocr2": decoder({**IMAGE, "grid": [4, 4]}),
    "ovis2": decoder({**IMAGE, "grid": [2, 2]}),
    "paligemma": decoder(PATCHES),
}  # fmt: skip


def case(name: str) -> Callable[[], tuple[Any, ...]]:
    """A factory for the kit."""

    def factory() -> tuple[Any, ...]:
        model, batch = zoo.build(name)
        return model, batch, dk.DeclarativeAdapter(**FILES[name])

    factory.__name__ = name
    return factory
