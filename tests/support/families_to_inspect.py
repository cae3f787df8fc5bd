"""Families whose adapter file ``inspect`` writes, and what is missing where it cannot.

Most are those of ``zoo``. Those whose batch there holds no image, or whose placeholders the model
does not replace, are built here with one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as T
from torch import nn

from . import zoo

Built = tuple[nn.Module, dict[str, Any]]
MORE: dict[str, Callable[[], Built]] = {}


def more(make: Callable[[], tuple[Any, Any, dict[str, Any]]]) -> Callable[..., Any]:
    def build() -> Built:
        cls, config, batch = make()
        torch.manual_seed(0)
        model = cls(config)
        zoo.sharpen(model, 4.0)
        with torch.no_grad():  # some configs start weights at 1e-10, which let no image through
            for parameter in model.parameters():
                if parameter.ndim > 1 and parameter.abs().max() < 1e-4:
                    parameter.normal_(std=0.1)
        return model.eval(), batch

    MORE[make.__name__] = build
    return make


@more
def blip2_opt():
    cls, config, batch = zoo.blip2_opt()
    config.image_token_index = config.image_token_id = zoo.IMAGE_TOKEN
    return cls, config, batch


@more
def blip2_t5():
    cls, config, batch = zoo.blip2_t5()
    config.image_token_index = config.image_token_id = zoo.IMAGE_TOKEN
    return cls, config, batch


@more
def instructblip():
    return zoo.instructblip()


@more
def got_ocr2():
    cls, config, batch = zoo.got_ocr2()
    config.image_token_index = config.image_token_id = zoo.IMAGE_TOKEN
    return cls, config, batch


@more
def kosmos2():
    cls, config, batch = zoo.kosmos2()
    marks = batch["image_embeds_position_mask"].long()
    return cls, config, batch | {"image_embeds_position_mask": marks}


@more
def chameleon():
    cls, config, _ = zoo.chameleon()
    codes = {"".join(chr(65 + int(digit)) for digit in str(i)): i for i in range(16)}
    config.vocabulary_map = {"<image>": zoo.IMAGE_TOKEN} | {
        f"IMGIMG{name}Z": 60 + i for name, i in codes.items()
    }
    batch = zoo.image_in_text(256) | {"pixel_values": zoo.pixels()}
    return cls, config, batch


@more
def vilt():
    config = T.ViltConfig(**(zoo.TEXT | zoo.VISION))
    return T.ViltModel, config, zoo.text_and_image()


@more
def vipllava():
    config = T.VipLlavaConfig(
        vision_config={"model_type": "clip_vision_model", **zoo.VISION},
        text_config={"model_type": "llama", **zoo.LLAMA}, image_token_index=zoo.IMAGE_TOKEN,
        image_token_id=zoo.IMAGE_TOKEN, vision_feature_layers=[-2, -1],
    )  # fmt: skip
    return (
        T.VipLlavaForConditionalGeneration,
        config,
        zoo.image_in_text(16) | {"pixel_values": zoo.pixels()},
    )


@more
def owlv2():
    config = T.Owlv2Config(text_config=zoo.TEXT, vision_config=zoo.VISION)
    return T.Owlv2Model, config, zoo.text_and_image()


@more
def aya_vision():
    config = T.AyaVisionConfig(
        vision_config=zoo.SIGLIP_TOWER, text_config={"model_type": "cohere2", "head_dim": 8, **zoo.LLAMA},
        image_token_index=zoo.IMAGE_TOKEN, image_token_id=zoo.IMAGE_TOKEN, downsample_factor=2, adapter_layer_norm_eps=1e-6,
        alignment_intermediate_size=64,
    )  # fmt: skip
    return (
        T.AyaVisionForConditionalGeneration,
        config,
        zoo.image_in_text(4) | {"pixel_values": zoo.pixels()},
    )


@more
def colpali():
    inner = zoo.paligemma()[1]
    config = T.ColPaliConfig(vlm_config=inner, embedding_dim=16)
    batch = zoo.image_in_text(16)
    return T.ColPaliForRetrieval, config, batch | {"pixel_values": zoo.pixels()}


@more
def deepseek_vl():
    config = T.DeepseekVLConfig(
        text_config={"model_type": "llama", **zoo.LLAMA}, vision_config=zoo.SIGLIP_TOWER,
        image_token_id=zoo.IMAGE_TOKEN,
    )  # fmt: skip
    batch = zoo.image_in_text(16) | {"pixel_values": zoo.pixels()}
    return T.DeepseekVLForConditionalGeneration, config, batch


@more
def video_llava():
    tower = {"model_type": "clip_vision_model", **zoo.VISION}
    config = T.VideoLlavaConfig(
        vision_config=tower, text_config={"model_type": "llama", **zoo.LLAMA},
        image_token_index=zoo.IMAGE_TOKEN, image_token_id=zoo.IMAGE_TOKEN, vision_feature_layer=-1,
    )  # fmt: skip
    batch = zoo.image_in_text(16) | {"pixel_values_images": zoo.pixels()}
    return T.VideoLlavaForConditionalGeneration, config, batch


@more
def llava_onevision():
    config = T.LlavaOnevisionConfig(
        vision_config=zoo.SIGLIP_TOWER, text_config={"model_type": "qwen2", **zoo.LLAMA},
        image_token_id=zoo.IMAGE_TOKEN, image_token_index=zoo.IMAGE_TOKEN, vision_feature_layer=-1,
        image_grid_pinpoints=[[32, 32]], vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    batch = zoo.image_in_text(36) | {
        "pixel_values": zoo.random(2, 2, 3, zoo.IMAGE, zoo.IMAGE),
        "image_sizes": torch.tensor([[32, 32], [32, 32]]),
    }
    return T.LlavaOnevisionForConditionalGeneration, config, batch


OF_ZOO = (
    "clip", "metaclip_2", "altclip", "chinese_clip", "align", "siglip", "siglip2", "owlvit",
    "groupvit", "x_clip", "clipseg", "vision_text_dual_encoder", "aimv2",
    "blip_itm", "blip_vqa", "bridgetower", "lxmert", "visual_bert", "flava", "layoutlmv3",
    "git", "pix2struct", "florence2", "trocr", "donut", "udop",
    "llava", "llava_next", "paligemma", "gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl",
    "idefics2", "idefics3", "smolvlm", "internvl", "mllama", "pixtral", "aria", "janus", "ovis2",
    "grounding_dino",
)  # fmt: skip
NAMES = (*OF_ZOO, *MORE)


def build(name: str) -> Built:
    """A model in eval mode, and its batch."""
    return MORE[name]() if name in MORE else zoo.build(name)


GRID = "[[tokens.joint]] grid = [rows, columns]"
MISSING: dict[str, tuple[str, ...]] = {
    "align": ("streams: image",),
    "x_clip": ("pairs = { text = ..., image = ... }",),
    "florence2": (GRID,),
    "udop": (GRID,),
    "grounding_dino": ("[[tokens.image]] grid = [rows, columns]",),
    "got_ocr2": (GRID,),
    "chameleon": (GRID,),
    "vilt": ("[[tokens.joint]] positions",),
}
"""Families whose file is not complete, or fails -> the lines that it says are missing."""

FAILING = {
    "x_clip": "towers that run 2 texts and 8 frames",
    "aimv2": "a text alone is attended to otherwise than in a batch",
    "udop": "words and patches are merged, and boxes move both",
    "vilt": "the order of patches is drawn in every forward",
    "chameleon": "an image becomes entries of a codebook, of which few change",
    "colpali": "a prompt without padding is attended to otherwise than one with it",
}
"""Families whose file fails a check -> why."""

INCOMPLETE = tuple(name for name in NAMES if MISSING.get(name) is not None or name in FAILING)


def expected(name: str) -> tuple[tuple[str, ...], bool]:
    """The lines that the file of a family lacks, and whether a check fails."""
    return MISSING.get(name, ()), name in FAILING


def outcome(inspection: Any) -> tuple[tuple[str, ...], bool]:
    """The same of what was written."""
    return tuple(inspection.missing), bool(inspection.failed)
