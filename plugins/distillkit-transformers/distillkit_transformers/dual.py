"""Dual encoders: two towers that never see each other, as students."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import distillkit as dk

from .family import Family
from .structure import attention_pattern, layers_of, part, patch_size
from .tokens import grid_of, image_tokens, mask_of, text_tokens


def dual_encoder(model: nn.Module) -> Family:
    """A text tower and an image tower: CLIP, SigLIP, VisionTextDualEncoder and the like."""
    text = attention_pattern(model, "text_model", never="crossattention")
    image = attention_pattern(model, "vision_model", never="head")
    cell = patch_size(part(model, "vision_model"))

    def lay(batch: Mapping[str, Any], record: dk.Record) -> dk.TokenLayout:
        length = batch["input_ids"].shape[1]
        words = text_tokens(batch, slice(0, length), special=first_is_special)
        streams = {"text": dk.StreamTokens({"text": words}, mask_of(batch))}
        streams["image"] = _image_stream(batch, record.layers(image)[-1].shape[2], cell)
        return dk.TokenLayout(streams)

    first_is_special = () if "siglip" in type(model).__module__ else (0,)
    return Family(
        dk.accepted_arguments(model),
        {"text": text, "image": image},
        lay,
        embedding={"text": "text_embeds", "image": "image_embeds"},
        hidden={"text": layers_of(text), "image": layers_of(image)},
    )


def _image_stream(
    batch: Mapping[str, Any], count: int, cell: tuple[int, int] | None
) -> dk.StreamTokens:
    """The image tower's tokens: [CLS] first, where there is one more than patches."""
    if "spatial_shapes" in batch:
        return _ragged_image_stream(batch, count)
    grid = grid_of(batch, cell)
    special = 0 if grid is None else count - grid[0] * grid[1]
    if grid is not None and special not in (0, 1):
        grid, special = None, 0  # registers, or patches that were merged: no raster is known
    tokens = image_tokens(batch, slice(0, count), grid, special=special)
    return dk.StreamTokens({"image": tokens})


def _ragged_image_stream(batch: Mapping[str, Any], count: int) -> dk.StreamTokens:
    """SigLIP2 keeps each image's own shape: ``spatial_shapes`` (b, 2) says rows and columns."""
    shapes, boxes = batch["spatial_shapes"], batch.get("image_boxes")
    extents = None if boxes is None else _ragged_extents(shapes, boxes, count)
    tokens = dk.ModalityTokens(slice(0, count), extents=extents)
    return dk.StreamTokens({"image": tokens}, mask_of(batch, "pixel_attention_mask"))


def _ragged_extents(shapes: Tensor, boxes: Tensor, count: int) -> Tensor:
    place = torch.arange(count, device=boxes.device)[None]
    columns = shapes[:, 1:]
    cell = torch.stack([place // columns, place % columns], 2)
    real = (place < shapes.prod(1, keepdim=True))[..., None]
    start, stop = (((cell + end) / shapes[:, None]).to(boxes.dtype) for end in (0, 1))
    corner, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    return torch.cat([corner + start * size, corner + stop * size], 2) * real
