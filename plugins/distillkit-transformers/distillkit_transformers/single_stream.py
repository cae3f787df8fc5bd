"""Single-stream fusion: words and patches in one sequence, both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import distillkit as dk

from .calls import stack_streams
from .family import Family
from .structure import attention_pattern, backbone, layers_of, part, patch_size
from .tokens import grid_of, image_tokens, joined, mask_of, text_tokens

_JOINT = "one encoder takes both together: it has no embedding of a text or an image alone"
NO_EMBEDDINGS = {"embedding.text": _JOINT, "embedding.image": _JOINT}


def vilt(model: nn.Module) -> Family:
    """ViLT: text, image [CLS], patches.

    ViLT draws its patches at random in every forward, so that their order is another each time;
    ``visual_embed`` returns it, and the layout restores the raster.
    """
    at = backbone(model, "vilt")
    drawn = f"{at}embeddings.visual_embed"
    cell = patch_size(part(model, f"{at}embeddings"))

    def lay(batch: Mapping[str, Any], record: dk.Record) -> dk.TokenLayout:
        return dk.TokenLayout({"joint": _joint(batch, record.returned(drawn), cell)})

    pattern = attention_pattern(model, f"{at}encoder")
    return Family(
        dk.accepted_arguments(model),
        {"joint": pattern},
        lay,
        absent=NO_EMBEDDINGS,
        hidden={"joint": layers_of(pattern)},
        returns=(drawn,),
    )


def vilt_of_images(model: nn.Module) -> Family:
    """ViLT for several images of a text (NLVR2), which it encodes one after another.

    Every image with the text is an example of the joint stream: row ``i * images + c`` is image c
    of text i, as in ``pixel_values.flatten(0, 1)``. ``image_boxes`` ``(b, images, 4)`` of the batch
    may say which part of each image its pixels show.
    """
    at = backbone(model, "vilt")
    drawn = f"{at}embeddings.visual_embed#*"
    cell = patch_size(part(model, f"{at}embeddings"))

    def lay(batch: Mapping[str, Any], record: dk.Record) -> dk.TokenLayout:
        calls = record.returned(drawn)
        parts = [_joint(_of_image(batch, number), call, cell) for number, call in enumerate(calls)]
        ids = batch["input_ids"]
        rows = torch.arange(len(ids) * len(calls), device=ids.device)
        pairs = {"text": rows // len(calls), "image": rows}
        return dk.TokenLayout({"joint": stack_streams(parts)}, pairs)

    pattern = attention_pattern(model, f"{at}encoder")
    return Family(
        dk.accepted_arguments(model),
        {"joint": f"{pattern}#*"},
        lay,
        absent=NO_EMBEDDINGS,
        hidden={"joint": f"{layers_of(pattern)}#*"},
        returns=(drawn,),
    )


def _of_image(batch: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What one of the model's calls is of: the texts, and one image of each."""
    without = {"pixel_values": 4, "pixel_mask": 3, "image_boxes": 2}  # axes, of one image each
    found = dict(batch)
    for name, axes in without.items():
        if name in batch and batch[name] is not None and batch[name].ndim > axes:
            found[name] = batch[name][:, number]
    return found


def _joint(
    batch: Mapping[str, Any], drawn: tuple[Any, ...], cell: tuple[int, int] | None
) -> dk.StreamTokens:
    """Words, image [CLS] and patches, as one call of ``visual_embed`` drew them."""
    ids = batch["input_ids"]
    _, image_mask, (index, (height, width)) = drawn
    length, real = ids.shape[1], image_mask != 0
    order, extents = _raster(index, real[:, 1:], (height, width), batch, cell)
    places = torch.cat([order.new_zeros(len(order), 1), order + 1], 1) + length
    whole = index.shape[1] == height * width and bool(real.all())
    image = dk.ModalityTokens(places, (0,), (height, width) if whole else None, extents)
    text = text_tokens(batch, slice(0, length))
    valid = joined([(mask_of(batch), length), (real, real.shape[1])], ids)
    return dk.StreamTokens({"text": text, "image": image}, valid)


def _raster(
    index: Tensor,
    real: Tensor,
    grid: tuple[int, int],
    batch: Mapping[str, Any],
    cell: tuple[int, int] | None,
) -> tuple[Tensor, Tensor | None]:
    """The drawn patches row by row, padding last, and where they lie in the raw image."""
    rank = index[..., 0] * grid[1] + index[..., 1]
    rank = torch.where(real, rank, grid[0] * grid[1])
    order = rank.argsort(dim=1, stable=True)
    index = index.take_along_dim(order[..., None], 1)
    return order, placed_patches(index, batch, cell)


def placed_patches(
    places: Tensor, batch: Mapping[str, Any], cell: tuple[int, int] | None
) -> Tensor | None:
    """The part of the raw image that [CLS], which has none, and every patch show, ``(b, m, 4)``.

    Args:
        places: ``(b, n, 2)``: row and column of every patch.
        batch: ``image_boxes`` says which part of the raw images is shown; without it nothing is
            known.
        cell: height and width of a patch in pixels.
    """
    boxes = batch.get("image_boxes")
    if boxes is None or cell is None:
        return None
    pixels = torch.tensor([*cell], device=places.device)
    shown = _shown(batch, places).to(boxes.dtype)[:, None]
    start, stop = (((places + end) * pixels / shown).clamp(0, 1) for end in (0, 1))
    corner, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    placed = torch.cat([corner + start * size, corner + stop * size], 2)
    return torch.cat([placed.new_zeros(len(placed), 1, 4), placed], 1)


def _shown(batch: Mapping[str, Any], index: Tensor) -> Tensor:
    """Height and width ``(b, 2)`` in pixels that each image fills of ``pixel_values``."""
    if "pixel_mask" in batch:
        mask = batch["pixel_mask"] != 0
        return torch.stack([mask.any(2).sum(1), mask.any(1).sum(1)], 1)
    height, width = batch["pixel_values"].shape[-2:]
    return torch.tensor([[height, width]], device=index.device).expand(len(index), 2)


def visual_bert(model: nn.Module) -> Family:
    """VisualBERT: text, then the regions that the user gives.

    ``region_boxes`` (b, regions, 4) of the batch may say where they lie.
    """
    at = backbone(model, "visual_bert")

    def lay(batch: Mapping[str, Any], _: dk.Record) -> dk.TokenLayout:
        ids, regions = batch["input_ids"], batch["visual_embeds"].shape[1]
        length = ids.shape[1]
        image = dk.ModalityTokens(
            slice(length, length + regions), extents=batch.get("region_boxes")
        )
        masks = mask_of(batch), mask_of(batch, "visual_attention_mask")
        valid = joined([(masks[0], length), (masks[1], regions)], ids)
        text = text_tokens(batch, slice(0, length))
        return dk.TokenLayout({"joint": dk.StreamTokens({"text": text, "image": image}, valid)})

    pattern = attention_pattern(model, f"{at}encoder")
    return Family(
        dk.accepted_arguments(model),
        {"joint": pattern},
        lay,
        absent=NO_EMBEDDINGS,
        hidden={"joint": layers_of(pattern)},
    )


def flava(model: nn.Module) -> Family:
    """FLAVA's multimodal encoder: its [CLS], image [CLS], patches, text."""
    at = backbone(model, "flava")
    image_part = part(model, f"{at}image_model")
    fusion = part(model, f"{at}multimodal_model")
    first = int(getattr(fusion, "cls_token", None) is not None)
    cell = patch_size(image_part)

    def lay(batch: Mapping[str, Any], record: dk.Record) -> dk.TokenLayout:
        ids, grid = batch["input_ids"], grid_of(batch, cell)
        length = ids.shape[1]
        total = record.layers(pattern)[-1].shape[2]
        image_end = total - length
        streams = {
            "image": image_tokens(batch, slice(first, image_end), grid, special=1),
            "text": text_tokens(batch, slice(image_end, total)),
        }
        if first:
            streams["multimodal"] = dk.ModalityTokens(slice(0, 1), (0,))
        valid = joined([(None, image_end), (mask_of(batch), length)], ids)
        return dk.TokenLayout({"joint": dk.StreamTokens(streams, valid)})

    pattern = attention_pattern(model, f"{at}multimodal_model")
    return Family(
        dk.accepted_arguments(model),
        {"joint": pattern},
        lay,
        hidden={"joint": layers_of(pattern)},
        embedding={"text": "text_embeddings", "image": "image_embeddings"},
    )
