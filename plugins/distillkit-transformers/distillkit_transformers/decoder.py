"""Decoder vision-language models: image tokens where a placeholder stands among the words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import distillkit as dk

from .family import Family
from .structure import attention_pattern, config_of, first_part, layers_of
from .tokens import Grid, image_tokens, mask_of, text_tokens

_LANGUAGE = (
    "model.language_model", "model.text_model", "language_model", "text_model",
)  # fmt: skip
_MARKERS = (
    "vision_start_token_id", "vision_end_token_id", "boi_token_id", "eoi_token_id",
    "boi_token_index", "eoi_token_index", "video_token_id",
)  # fmt: skip

NO_EMBEDDING = "a decoder ends in words: it has no embedding of a text or an image"


def causal(model: nn.Module) -> Family:
    """LLaVA, Qwen-VL, SmolVLM and the like: words see the image before them, never the reverse."""
    why = "a causal decoder's image tokens come before the words and never see them"
    return _decoder(model, {"attention.image_to_text": why})


def prefix(model: nn.Module) -> Family:
    """PaliGemma: image and prompt see each other, as ``token_type_ids`` says; both directions."""
    return _decoder(model, {})


def _decoder(model: nn.Module, absent: Mapping[str, str]) -> Family:
    pattern = attention_pattern(model, first_part(model, _LANGUAGE))
    image_id = _image_token(model)
    known = (getattr(config_of(model), name, None) for name in _MARKERS)
    markers = [number for number in known if number is not None and number != image_id]

    def lay(batch: Mapping[str, Any], _: dk.Record) -> dk.TokenLayout:
        ids = batch["input_ids"]
        is_image = ids == image_id
        is_marker = torch.isin(ids, torch.tensor(markers, dtype=ids.dtype, device=ids.device))
        found = {
            "image": image_tokens(batch, is_image, _grid(model, batch, is_image)),
            "text": text_tokens(batch, ~(is_image | is_marker), special=()),
        }
        if markers:
            found["marker"] = dk.ModalityTokens(is_marker)
        return dk.TokenLayout({"joint": dk.StreamTokens(found, mask_of(batch))})

    return Family(
        dk.accepted_arguments(model),
        {"joint": pattern},
        lay,
        absent={**absent, "embedding.text": NO_EMBEDDING, "embedding.image": NO_EMBEDDING},
        hidden={"joint": layers_of(pattern)},
    )


def _image_token(model: nn.Module) -> int:
    config = config_of(model)
    for name in ("image_token_id", "image_token_index"):
        number = getattr(config, name, None)
        if number is not None:
            return int(number)
    raise dk.errors.SignalError(
        f"the configuration of {type(model).__name__} names no image token (image_token_id): "
        "describe the model in an adapter file, with `where` and `equals`"
    )


def _grid(model: nn.Module, batch: Mapping[str, Any], is_image: Tensor) -> Grid | None:
    """Rows and columns of an image's tokens, where every example has one image of one shape."""
    if "image_grid_thw" in batch:
        shapes = batch["image_grid_thw"]
        merge = int(config_of(model).vision_config.spatial_merge_size)
        if len(shapes) != len(is_image) or not bool((shapes == shapes[:1]).all()):
            return None
        counts = is_image.sum(1)
        if not bool((counts == counts[:1]).all()):
            return None  # as many images as examples, and one example has two of them
        frames, height, width = shapes[0].tolist()
        return (height // merge, width // merge) if frames == 1 else None
    pixels = batch.get("pixel_values")
    if pixels is None or pixels.shape[-1] != pixels.shape[-2]:
        return None
    images = math.prod(pixels.shape[:-3])
    counts = is_image.sum(1)
    if images != len(is_image) or not bool((counts == counts[:1]).all()):
        return None
    side = math.isqrt(int(counts[0]))  # a square image makes a square of tokens
    return (side, side) if side * side == int(counts[0]) else None
