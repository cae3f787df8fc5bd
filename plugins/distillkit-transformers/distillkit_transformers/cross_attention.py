"""Cross-attention fusion: one stream's queries over the other's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

import distillkit as dk

from .family import Family, Lay
from .structure import (
    attention_pattern,
    backbone,
    config_of,
    first_part,
    layers_of,
    part,
    patch_size,
)
from .tokens import grid_of, image_tokens, joined, mask_of, text_tokens

_FUSED = "words and patches read each other: it has no embedding of a text or an image alone"
NO_EMBEDDINGS = {"embedding.text": _FUSED, "embedding.image": _FUSED}


def lxmert(model: nn.Module) -> Family:
    """LXMERT: one module per layer, called for words over regions, then for regions over words.

    ``region_boxes`` (b, regions, 4) of the batch may say where the regions lie.
    """
    at = backbone(model, "lxmert")
    pattern = attention_pattern(model, f"{at}encoder", within="visual_attention")
    layers = layers_of(pattern)

    def lay(batch: Mapping[str, Any], _: dk.Record) -> dk.TokenLayout:
        length, regions = batch["input_ids"].shape[1], batch["visual_feats"].shape[1]
        text = {"text": text_tokens(batch, slice(0, length))}
        image = {"image": dk.ModalityTokens(slice(0, regions), extents=batch.get("region_boxes"))}
        return dk.TokenLayout({
            "text": dk.StreamTokens(text, mask_of(batch)),
            "image": dk.StreamTokens(image, mask_of(batch, "visual_attention_mask")),
        })  # fmt: skip

    return Family(
        dk.accepted_arguments(model),
        {"text_to_image": f"{pattern}#0", "image_to_text": f"{pattern}#1"},
        lay,
        absent=NO_EMBEDDINGS,
        hidden={"text": f"{layers}.lang_output", "image": f"{layers}.visn_output"},
        logits="question_answering_score",
    )


def bridgetower(model: nn.Module) -> Family:
    """BridgeTower: two streams that read each other in every fusion layer."""
    at = backbone(model, "bridgetower")
    streams = {
        "text_to_image": attention_pattern(
            model, f"{at}cross_modal_text_layers", within="crossattention"
        ),
        "image_to_text": attention_pattern(
            model, f"{at}cross_modal_image_layers", within="crossattention"
        ),
    }
    absent = dict(NO_EMBEDDINGS)
    if "Contrastive" in type(model).__name__:
        absent["logits"] = (
            "its output's `logits` are embeddings of text, image and both, no classes"
        )
    lay = _words_over_patches(part(model, f"{at}vision_model"), streams["text_to_image"])
    hidden = {
        "text": layers_of(streams["text_to_image"]),
        "image": layers_of(streams["image_to_text"]),
    }
    return Family(dk.accepted_arguments(model), streams, lay, absent=absent, hidden=hidden)


def blip(model: nn.Module) -> Family:
    """BLIP's text encoder or decoder, whose words read the patches."""
    at = first_part(model, ("text_encoder", "text_decoder"))
    streams = {"text_to_image": attention_pattern(model, at, within="crossattention")}
    patches = attention_pattern(model, "vision_model")
    alone = "BLIP's patches are encoded alone and never see a word"
    absent = {**NO_EMBEDDINGS, "attention.image_to_text": alone}
    if at == "text_encoder" and not hasattr(model, "itm_head"):
        absent["logits"] = "BLIP writes its answers word by word: its encoder has no classes"
    return Family(
        dk.accepted_arguments(model),
        streams,
        _words_over_patches(part(model, "vision_model"), streams["text_to_image"]),
        logits="itm_score" if hasattr(model, "itm_head") else "logits",
        match=1 if hasattr(model, "itm_head") else None,
        absent=absent,
        hidden={"text": layers_of(streams["text_to_image"]), "image": layers_of(patches)},
    )


def blip_2(model: nn.Module) -> Family:
    """BLIP-2's Q-Former: learned queries read the patches; words, where it has any, the queries."""
    learned = int(config_of(model).num_query_tokens)
    streams = {"query_to_image": attention_pattern(model, "qformer", within="crossattention")}
    reads_text = hasattr(model, "itm_head")
    if reads_text:
        streams["joint"] = attention_pattern(model, "qformer", never="crossattention")
    cell = patch_size(part(model, "vision_model"))
    placeholders = learned if config_of(model).image_token_index is not None else 0

    def lay(batch: Mapping[str, Any], record: dk.Record) -> dk.TokenLayout:
        queries = dk.ModalityTokens(slice(0, learned))
        count = record.layers(streams["query_to_image"])[-1].shape[3]
        grid = grid_of(batch, cell)
        patches = {"image": image_tokens(batch, slice(0, count), grid, special=1)}
        found = {
            "query": dk.StreamTokens({"query": queries}),
            "image": dk.StreamTokens(patches),
        }
        if reads_text:
            ids, mask = batch["input_ids"][:, placeholders:], mask_of(batch)
            real = None if mask is None else mask[:, placeholders:]
            seen = None if mask is None or not placeholders else mask[:, :placeholders]
            length = ids.shape[1]
            text = text_tokens(batch, slice(learned, learned + length), ids=ids)
            valid = joined([(seen, learned), (real, length)], ids)
            found["joint"] = dk.StreamTokens({"query": queries, "text": text}, valid)
        return dk.TokenLayout(found)

    why = (
        "words of the Q-Former meet its learned queries, never patches: `attention.query_to_image`"
    )
    return Family(
        dk.accepted_arguments(model),
        streams,
        lay,
        logits="logits_per_image" if reads_text else "logits",
        match=1 if reads_text else None,
        embedding={"text": "text_embeds", "image": "image_embeds"} if reads_text else {},
        absent={
            "attention.text_to_image": why,
            "attention.image_to_text": why,
            **({} if reads_text else NO_EMBEDDINGS),
        },
        hidden={
            "joint" if reads_text else "query": layers_of(streams["query_to_image"]),
            "image": layers_of(attention_pattern(model, "vision_model")),
        },
    )


def _words_over_patches(vision: nn.Module, pattern: str) -> Lay:
    cell = patch_size(vision)

    def lay(batch: Mapping[str, Any], record: dk.Record) -> dk.TokenLayout:
        length = batch["input_ids"].shape[1]
        count = record.layers(pattern)[-1].shape[3]
        grid = grid_of(batch, cell)
        if grid is not None and grid[0] * grid[1] + 1 != count:
            grid = None
        text = {"text": text_tokens(batch, slice(0, length))}
        image = {"image": image_tokens(batch, slice(0, count), grid, special=1)}
        return dk.TokenLayout({
            "text": dk.StreamTokens(text, mask_of(batch)),
            "image": dk.StreamTokens(image),
        })  # fmt: skip

    return lay
