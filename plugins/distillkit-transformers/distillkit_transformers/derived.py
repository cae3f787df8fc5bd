"""What a layout needs to know of a forward, and no entry of the batch says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import distillkit as dk

_KEYS_OF = "keys of "


def derived_entry(
    what: str, batch: Mapping[str, Any], record: dk.Record, streams: Mapping[str, str], config: Any
) -> Tensor:
    """The value of an entry that a family's file derives.

    Args:
        what: ``"keys of <stream>"``: an entry as long as that stream's sequence of keys;
            ``"any_resolution"``: rows and columns of patches that the tiles of each image make,
            without those that only its padding fills; ``"whole_image"``: those of the image itself,
            which stands before them; ``"codes"``: those of the codes that each image becomes;
            ``"merged"``: those of its tokens, where the batch says how many patches each is of.
        batch: what the model was called with.
        record: what capture saw of the forward.
        streams: stream -> pattern of its attention modules.
        config: the model's configuration.
    """
    if what.startswith(_KEYS_OF):
        examples, _, _, keys = record.layers(streams[what.removeprefix(_KEYS_OF)])[-1].shape
        return torch.empty(examples, keys, device="meta")
    grid_of = {"any_resolution": _grid_of_tiles, "whole_image": _grid_of_image}.get(what)
    if grid_of is not None:
        of_images: Tensor = batch["image_sizes"]
        grids = [grid_of(one, config) for one in of_images.tolist()]
        return torch.tensor(grids, device=of_images.device)
    if what == "merged":
        shapes: Tensor = batch["image_grid_thw"].clone()
        shapes[:, 1:] //= batch["image_merge_sizes"][:, None]
        return shapes
    if what == "codes":
        pixels: Tensor = batch["pixel_values"]
        sizes = batch.get("image_sizes")
        if sizes is None:
            sizes = torch.tensor([pixels.shape[-2:]] * len(pixels), device=pixels.device)
        grids_of_codes: Tensor = sizes // 2 ** (len(config.vq_config.channel_multiplier) - 1)
        return grids_of_codes
    raise ValueError(f"nothing is derived as {what!r}")


def _grid_of_image(_size: list[int], config: Any) -> tuple[int, int]:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side, side


def _grid_of_tiles(size: list[int], config: Any) -> tuple[int, int]:
    """The patches of one image's tiles, as LLaVA-NeXT and LLaVA-OneVision cut and shrink them."""
    from transformers.models.llava_next import modeling_llava_next as llava_next

    side, _ = _grid_of_image(size, config)
    pinpoints = [list(one) for one in config.image_grid_pinpoints]
    rows, columns = llava_next.get_anyres_image_grid_shape(  # type: ignore[no-untyped-call]
        size, pinpoints, config.vision_config.image_size
    )
    tiled = torch.empty(1, rows * side, columns * side, device="meta")
    _, rows, columns = llava_next.unpad_image(tiled, size).shape  # type: ignore[no-untyped-call]
    limit = getattr(config, "vision_aspect_ratio", None)
    if limit is None:
        return rows, columns
    most = int(limit.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * side**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)
