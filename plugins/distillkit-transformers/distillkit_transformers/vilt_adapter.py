"""The adapter of :class:`ViltDualEncoder`: two towers, their patches row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import distillkit as dk

from .family import Family
from .single_stream import placed_patches
from .structure import attention_pattern, layers_of, part, patch_size
from .tokens import image_tokens, mask_of, text_tokens

_CHOSEN = "image.embeddings.choose"


def vilt_dual_encoder(model: nn.Module) -> Family:
    """Two towers from one ViLT, both directions by their queries and keys.

    Where an example has two images, its text is paired with each: pair ``2 i + c`` is text i with
    its image c, the order in which the calls of a ViLT for two images are stacked.
    """
    text, image = (attention_pattern(model, tower) for tower in ("text", "image"))
    cell = patch_size(part(model, "image.embeddings"))

    def lay(batch: Mapping[str, Any], record: dk.Record) -> dk.TokenLayout:
        ids = batch["input_ids"]
        words = text_tokens(batch, slice(0, ids.shape[1]))
        streams = {"text": dk.StreamTokens({"text": words}, mask_of(batch))}
        streams["image"] = _images(_single(batch), record.returned(_CHOSEN), cell)
        return dk.TokenLayout(streams, _pairs(batch))

    return Family(
        dk.accepted_arguments(model),
        {"text": text, "image": image},
        lay,
        embedding={"text": "text_embeds", "image": "image_embeds"},
        hidden={"text": layers_of(text), "image": layers_of(image)},
        returns=(_CHOSEN,),
        count=_examples,
    )


def _examples(batch: Mapping[str, Any]) -> dict[str, int]:
    """The number of texts, of images and of pairs."""
    texts, pixels = len(batch["input_ids"]), batch["pixel_values"]
    images = len(pixels) * (pixels.shape[1] if pixels.ndim == 5 else 1)
    pairs = images if pixels.ndim == 5 else texts
    return {
        "logits": texts,
        **{f"{kind}.text": texts for kind in ("attention", "hidden", "embedding")},
        **{f"{kind}.image": images for kind in ("attention", "hidden", "embedding")},
        "attention.text_to_image": pairs,
        "attention.image_to_text": pairs,
    }


def _images(batch: Mapping[str, Any], chosen: Any, cell: tuple[int, int] | None) -> dk.StreamTokens:
    real: Tensor = chosen.real
    count = chosen.raster.shape[1]
    rows, columns = chosen.grid
    whole = count == rows * columns and bool(real.all())
    positions = slice(0, count + 1)
    if whole:
        tokens = image_tokens(batch, positions, chosen.grid, special=1)
    else:
        extents = placed_patches(chosen.places, batch, cell)
        tokens = dk.ModalityTokens(positions, (0,), None, extents)
    valid = torch.cat([real.new_ones(len(real), 1), real], 1)
    return dk.StreamTokens({"image": tokens}, valid)


def _pairs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Which text is paired with which image, where they are not pairs one by one."""
    ids = batch["input_ids"]
    texts = torch.arange(len(ids), device=ids.device)
    if batch["pixel_values"].ndim == 5:
        images = batch["pixel_values"].shape[1]
        every = torch.arange(images * len(ids), device=ids.device)
        return {"text": texts.repeat_interleave(images), "image": every}
    index = batch.get("image_index")
    return {} if index is None else {"text": texts, "image": index}


def _single(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch of pairs of images as one of images, in the order in which the tower reads them."""
    if batch["pixel_values"].ndim == 4:
        return batch
    names = [name for name in ("pixel_values", "pixel_mask", "image_boxes") if name in batch]
    return {name: batch[name].flatten(0, 1) for name in names}
