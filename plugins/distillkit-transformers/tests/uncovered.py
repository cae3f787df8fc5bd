"""Folders of transformers whose models read words and pictures, and that no adapter describes."""

from __future__ import annotations

import re
from pathlib import Path

import transformers
from distillkit_transformers import plugin

_PICTURES = re.compile(r"\b(pixel_values|flattened_patches|pixel_values_videos)\b")
_WORDS = re.compile(r"\b(input_ids|decoder_input_ids)\b")

MADE_WITH = "5.24"  # the version of transformers whose folders these are

_TIMM = "its image tower is timm's, which is no part of transformers: not tried"
_BROKEN = "a forward with an image fails in transformers itself"
_NOT_YET = "not described yet: write an adapter file of your own"

REASONS: dict[str, str] = {
    "align": "its image tower is convolutional: it has no attention",
    "fast_vlm": _TIMM,
    "gemma3n": _TIMM,
    "perception_lm": _TIMM,
    "llama4": f"{_BROKEN}: its output has no `image_outputs`",
    "udop": "patches are merged with the words that lie on them: one token is both",
    "omdet_turbo": "words are pooled into one embedding for each class before they meet an image",
    "mlcd": "an image tower alone",
    "trocr": "a decoder alone; with an image tower it is `vision_encoder_decoder`",
    "musicgen": "words and sound; it has no pictures",
    "musicgen_melody": "words and sound; it has no pictures",
    "perceiver": "latents read one array of bytes: it has no tokens of words and patches",
    "pe_audio_video": "its words meet sound and film as two pooled embeddings",
    "pp_doclayout_v2": "boxes of a page are read in order; it has no words",
    **dict.fromkeys(
        (
            "apertus1p5",
            "cosmos3_edge",
            "cosmos3_omni",
            "deepseek_ocr2",
            "diffusion_gemma",
            "dots3_note",
            "embedding_gemma2",
            "gemma4_unified",
            "glm5_next",
            "glm_image",
            "granite4_vision",
            "granite_docling",
            "hy_v4_vl",
            "hyperclovax_vision_v2",
            "inkling",
            "inkling2",
            "inkling2_loop",
            "instructblipvideo",
            "minicpm_ocr",
            "minicpmv4_6",
            "minicpmv4_7",
            "minimax_m3_vl",
            "mistral_large4",
            "molmo2",
            "muse_glimmer",
            "muse_spark",
            "nemotron_h_omni",
            "neomme",
            "pe_video",
            "phi4_multimodal",
            "pi0",
            "pp_formulanet",
            "qwen2_5_omni",
            "qwen3_omni_moe",
            "qwen4_exp",
            "sam3",
            "sam3_lite_text",
            "sam3_video",
            "shieldgemma2",
            "step3p7",
            "tvp",
            "ultravbert",
            "unlimited_ocr",
            "videoprism",
            "vision_encoder_decoder",
        ),
        _NOT_YET,
    ),
}


def folders() -> set[str]:
    """Folders of transformers whose modelling files name words and pictures."""
    root = Path(transformers.__file__).parent / "models"
    found = set()
    for file in root.glob("*/modeling_*.py"):
        text = file.read_text(encoding="utf-8")
        if _PICTURES.search(text) and _WORDS.search(text):
            found.add(file.parent.name)
    return found


def uncovered() -> set[str]:
    """Those of them that no adapter describes."""
    return folders() - {spec.matches.split(".")[2] for spec in plugin.distillkit_adapters()}


def lines() -> list[str]:
    """The table of them."""
    rows = [("folder", "why"), ("---", "---")]
    rows += [(f"`{name}`", REASONS[name]) for name in sorted(uncovered())]
    return [f"| {' | '.join(row)} |" for row in rows]
