"""Real architectures of transformers, tiny and randomly initialised, each with a padded batch.

A family is a function that returns the model's class, its config and one batch. It declares how
many attentions one forward computes, counted by hand from the config, and how many of the maps
that ``output_attentions=True`` returns are no softmax of query @ key^T (deformable attention).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

warnings.filterwarnings("ignore", module="transformers")

import transformers as T  # noqa: E402

T.logging.set_verbosity_error()

WIDTH, HEADS, LAYERS, INNER, WORDS = 32, 4, 2, 64, 99
IMAGE, PATCH = 32, 8  # 4 x 4 patches
IMAGE_TOKEN = WORDS - 1


class Family(NamedTuple):
    """One architecture: how to make it, and what one forward of it computes."""

    name: str
    make: Callable[[], tuple[Any, Any, dict[str, Any]]]
    attentions: int
    other_maps: int
    eager_differs: bool
    sharper: float
    note: str


FAMILIES: dict[str, Family] = {}


def family(
    attentions: int,
    *,
    other_maps: int = 0,
    eager_differs: bool = False,
    sharper: float = 4.0,
    note: str = "",
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Declare what one forward computes.

    Args:
        attentions: softmaxes of query @ key^T.
        other_maps: maps in the output that are none.
        eager_differs: transformers' own eager model gives another output with the same weights.
        sharper: factor of the weights that make queries and keys.
        note: for the table.
    """

    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        name = make.__name__
        FAMILIES[name] = Family(name, make, attentions, other_maps, eager_differs, sharper, note)
        return make

    return add


def build(name: str, implementation: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The model in eval mode and its batch; None is the implementation transformers chooses.

    The weights depend on the name alone, and make attention far from uniform.
    """
    found = FAMILIES[name]
    cls, config, batch = found.make()
    torch.manual_seed(0)
    options = {} if implementation is None else {"attn_implementation": implementation}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = cls._from_config(copy.deepcopy(config), **options)
    sharpen(model, found.sharper)
    # some models draw inside forward (ViLT its patches): each forward draws the same
    model.register_forward_pre_hook(_seed)
    return model.eval(), batch


def _seed(*_: object) -> None:
    torch.manual_seed(0)


QUERY_OR_KEY = (
    "q", "k", "query", "key", "q_proj", "k_proj", "q_lin", "k_lin", "qkv", "qkv_proj", "query_proj", "key_proj",
    "query_key_value", "c_attn", "linear_q", "linear_k", "q_bias", "to_q", "to_k", "in_proj_qkv", "query_global",
)  # fmt: skip


def sharpen(model: nn.Module, factor: float) -> None:
    """Make attention far from uniform: scale what makes queries and keys, draw what starts at 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            *_, owner, last = ["", *name.split(".")]
            if parameter.ndim < 2:
                continue
            if not parameter.any():
                parameter.normal_()
            if owner in QUERY_OR_KEY or last in (*QUERY_OR_KEY, "in_proj_weight"):
                parameter.mul_(factor)


def random(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(n: int = 7, *, lowest: int = 5, highest: int = IMAGE_TOKEN - 1) -> torch.Tensor:
    return torch.randint(lowest, highest, (2, n), generator=torch.Generator().manual_seed(1))


def padding(n: int = 7) -> torch.Tensor:
    mask = torch.ones(2, n, dtype=torch.long)
    mask[1, -2:] = 0
    return mask


def text(n: int = 7) -> dict[str, torch.Tensor]:
    return {"input_ids": ids(n), "attention_mask": padding(n)}


def pixels(size: int = IMAGE) -> torch.Tensor:
    return random(2, 3, size, size)


def text_and_image() -> dict[str, torch.Tensor]:
    return text() | {"pixel_values": pixels()}


def image_in_text(images: int, after: int = 6) -> dict[str, torch.Tensor]:
    """``images`` image tokens after the first word; the second example is padded."""
    words = ids(1 + images + after - 1)
    words[:, 1 : 1 + images] = IMAGE_TOKEN
    return {"input_ids": words, "attention_mask": padding(words.shape[1])}


SIZES = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}  # fmt: skip
TOKENS = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = SIZES | TOKENS | {"max_position_embeddings": 64}
VISION = SIZES | {"image_size": IMAGE, "patch_size": PATCH}
LLAMA = TEXT | {"num_key_value_heads": 2, "max_position_embeddings": 256}
OPT = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "ffn_dim": INNER, "max_position_embeddings": 64, "word_embed_proj_dim": WIDTH, "pad_token_id": 1,
}  # fmt: skip
T5 = {
    "vocab_size": WORDS, "d_model": WIDTH, "d_kv": 8, "d_ff": INNER, "num_layers": LAYERS, "num_heads": HEADS,
    "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
QFORMER = SIZES | {
    "vocab_size": WORDS, "encoder_hidden_size": WIDTH, "max_position_embeddings": 64,
    "cross_attention_frequency": 1, "pad_token_id": 0,
}  # fmt: skip
BART = TOKENS | {
    "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER,
    "max_position_embeddings": 64, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MROPE = ROPE | {"mrope_section": [1, 1, 2]}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4}  # fmt: skip


# dual encoders


@family(4)
def clip():
    return T.CLIPModel, T.CLIPConfig(text_config=TEXT, vision_config=VISION), text_and_image()


@family(5, note="the pooling head is an nn.MultiheadAttention")
def siglip():
    return T.SiglipModel, T.SiglipConfig(text_config=TEXT, vision_config=VISION), text_and_image()


@family(5, note="the pooling head is an nn.MultiheadAttention")
def siglip2():
    config = T.Siglip2Config(text_config=TEXT, vision_config=VISION | {"num_patches": 16})
    seen = torch.ones(2, 16, dtype=torch.long)
    seen[1, 12:] = 0
    return (
        T.Siglip2Model,
        config,
        text()
        | {
            "pixel_values": random(2, 16, 3 * PATCH * PATCH),
            "pixel_attention_mask": seen,
            "spatial_shapes": torch.tensor([[4, 4], [3, 4]]),
        },
    )


@family(4)
def metaclip_2():
    config = T.MetaClip2Config(text_config=TEXT, vision_config=VISION)
    return T.MetaClip2Model, config, text_and_image()


@family(4)
def altclip():
    config = T.AltCLIPConfig(text_config=TEXT | {"project_dim": 16}, vision_config=VISION)
    return T.AltCLIPModel, config, text_and_image()


@family(4)
def chinese_clip():
    config = T.ChineseCLIPConfig(text_config=TEXT, vision_config=VISION)
    return T.ChineseCLIPModel, config, text_and_image()


@family(2, note="the image tower is convolutional")
def align():
    vision = {
        "image_size": 32, "kernel_sizes": [3, 3], "in_channels": [32, 16], "out_channels": [16, 32],
        "strides": [1, 1], "num_block_repeats": [1, 1], "expand_ratios": [1, 6], "hidden_dim": 64,
    }  # fmt: skip
    config = T.AlignConfig(text_config=TEXT, vision_config=vision, projection_dim=64)
    return T.AlignModel, config, text_and_image()


@family(4)
def owlvit():
    return T.OwlViTModel, T.OwlViTConfig(text_config=TEXT, vision_config=VISION), text_and_image()


@family(
    7,
    other_maps=1,
    note="the map of a grouping is the hard one that it uses, not the soft one that it returns",
)
def groupvit():
    vision = VISION | {
        "depths": [2, 1], "num_hidden_layers": 3, "num_group_tokens": [8, 0], "num_output_groups": [4, 4],
    }  # fmt: skip
    config = T.GroupViTConfig(
        text_config=TEXT, vision_config=vision, projection_dim=16, projection_intermediate_dim=32
    )
    return T.GroupViTModel, config, text_and_image()


@family(8)
def x_clip():
    vision = VISION | {
        "num_frames": 4, "mit_hidden_size": 16, "mit_intermediate_size": 32, "mit_num_attention_heads": 2,
        "mit_num_hidden_layers": 1,
    }  # fmt: skip
    config = T.XCLIPConfig(
        text_config=TEXT, vision_config=vision, projection_dim=16, prompt_layers=1,
        prompt_num_attention_heads=2,
    )  # fmt: skip
    return T.XCLIPModel, config, text() | {"pixel_values": random(2, 4, 3, IMAGE, IMAGE)}


@family(4)
def clipseg():
    return T.CLIPSegModel, T.CLIPSegConfig(text_config=TEXT, vision_config=VISION), text_and_image()


@family(4)
def vision_text_dual_encoder():
    config = T.VisionTextDualEncoderConfig.from_vision_text_configs(
        T.ViTConfig(**VISION), T.BertConfig(**TEXT), projection_dim=16
    )
    return T.VisionTextDualEncoderModel, config, text_and_image()


@family(5)
def aimv2():
    words = {
        name: value for name, value in TEXT.items() if name not in ("pad_token_id", "bos_token_id")
    }
    config = T.Aimv2Config(text_config=words, vision_config=VISION, projection_dim=16)
    return T.Aimv2Model, config, text_and_image()


# fusion encoders


@family(2, note="draws patches inside forward")
def vilt():
    seen = torch.ones(2, IMAGE, IMAGE, dtype=torch.long)
    seen[1, :, 24:] = 0
    config = T.ViltConfig(**(TEXT | VISION), max_image_length=-1)
    return T.ViltModel, config, text_and_image() | {"pixel_mask": seen}


@family(6)
def blip_itm():
    config = T.BlipConfig(text_config=TEXT | {"encoder_hidden_size": WIDTH}, vision_config=VISION)
    return T.BlipForImageTextRetrieval, config, text_and_image() | {"use_itm_head": True}


@family(10)
def blip_vqa():
    config = T.BlipConfig(text_config=TEXT | {"encoder_hidden_size": WIDTH}, vision_config=VISION)
    answer = {"decoder_input_ids": ids(5), "decoder_attention_mask": padding(5), "labels": ids(5)}
    return T.BlipForQuestionAnswering, config, text_and_image() | answer


@family(14, note="fused in_proj in the image tower")
def bridgetower():
    wide = {"hidden_size": 64, "num_hidden_layers": 3}
    config = T.BridgeTowerConfig(
        **(SIZES | {"hidden_size": 64}), text_config=TEXT | wide,
        vision_config={**wide, "image_size": IMAGE, "patch_size": PATCH},
    )  # fmt: skip
    seen = torch.ones(2, IMAGE, IMAGE, dtype=torch.long)
    return T.BridgeTowerModel, config, text_and_image() | {"pixel_mask": seen}


@family(11, note="one cross-attention module runs twice per layer")
def lxmert():
    config = T.LxmertConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=INNER,
        l_layers=LAYERS, r_layers=1, x_layers=LAYERS, visual_feat_dim=16, visual_pos_dim=4,
    )  # fmt: skip
    boxes = {"visual_feats": random(2, 5, 16), "visual_pos": random(2, 5, 4).sigmoid()}
    return T.LxmertModel, config, text() | boxes


@family(2)
def visual_bert():
    regions = {
        "visual_embeds": random(2, 5, 16),
        "visual_attention_mask": padding(5),
        "visual_token_type_ids": torch.ones(2, 5, dtype=torch.long),
    }
    return T.VisualBertModel, T.VisualBertConfig(**TEXT, visual_embedding_dim=16), text() | regions


@family(6)
def flava():
    config = T.FlavaConfig(
        image_config=VISION, text_config=TEXT, multimodal_config=SIZES, hidden_size=WIDTH,
        projection_dim=16,
    )  # fmt: skip
    return T.FlavaModel, config, text_and_image()


@family(2, note="scores computed as softmax(x / a - max) * a (CogView)")
def layoutlmv3():
    config = T.LayoutLMv3Config(
        **TEXT, input_size=IMAGE, patch_size=PATCH, coordinate_size=5, shape_size=6,
        max_2d_position_embeddings=100, rel_pos_bins=8, max_rel_pos=16, rel_2d_pos_bins=8,
        max_rel_2d_pos=16,
    )  # fmt: skip
    boxes = {"bbox": torch.zeros(2, 7, 4, dtype=torch.long)}
    return T.LayoutLMv3Model, config, text_and_image() | boxes


# encoder-decoders, prefixes, query transformers


@family(4)
def git():
    return T.GitModel, T.GitConfig(**TEXT, vision_config=VISION), text_and_image()


@family(8)
def blip2_opt():
    config = T.Blip2Config(
        vision_config=VISION, qformer_config=QFORMER, text_config={"model_type": "opt", **OPT},
        num_query_tokens=4, image_token_id=IMAGE_TOKEN,
    )  # fmt: skip
    batch = image_in_text(4) | {"pixel_values": pixels()}
    return T.Blip2ForConditionalGeneration, config, batch


@family(12, sharper=2.0, note="without scaling: sdpa and eager drift apart if sharpened more")
def blip2_t5():
    config = T.Blip2Config(
        vision_config=VISION, qformer_config=QFORMER, text_config={"model_type": "t5", **T5},
        num_query_tokens=4, image_token_id=IMAGE_TOKEN,
    )  # fmt: skip
    batch = image_in_text(4) | {"pixel_values": pixels(), "decoder_input_ids": ids(5)}
    return T.Blip2ForConditionalGeneration, config, batch


@family(8)
def instructblip():
    config = T.InstructBlipConfig(
        vision_config=VISION, qformer_config=QFORMER, text_config={"model_type": "opt", **OPT},
        num_query_tokens=4, image_token_id=IMAGE_TOKEN,
    )  # fmt: skip
    question = {"qformer_input_ids": ids(), "qformer_attention_mask": padding()}
    batch = image_in_text(4) | {"pixel_values": pixels()} | question
    return T.InstructBlipForConditionalGeneration, config, batch


@family(6)
def pix2struct():
    vision = {
        "hidden_size": WIDTH, "patch_embed_hidden_size": 3 * PATCH * PATCH, "d_ff": INNER, "d_kv": 8,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "seq_len": 16,
    }  # fmt: skip
    words = {"vocab_size": WORDS, "hidden_size": WIDTH} | {
        name: T5[name] for name in T5 if name not in ("vocab_size", "d_model")
    }
    place = torch.arange(16).expand(2, 16)
    patches = torch.stack([place // 4 + 1.0, place % 4 + 1.0], -1)
    return (
        T.Pix2StructForConditionalGeneration,
        T.Pix2StructConfig(text_config=words, vision_config=vision),
        {
            "flattened_patches": torch.cat([patches, random(2, 16, 3 * PATCH * PATCH)], -1),
            "attention_mask": padding(16).float(),
            "decoder_input_ids": ids(5),
        },
    )


@family(10, note="windows and channel attention in the image tower")
def florence2():
    vision = {
        "embed_dim": (8, 16), "depths": (1, 1), "num_heads": (2, 2), "num_groups": (2, 2), "patch_size": (7, 3),
        "patch_stride": (4, 2), "patch_padding": (3, 1), "patch_prenorm": (False, True), "window_size": 4,
        "projection_dim": WIDTH, "max_temporal_embeddings": 4, "max_position_embeddings": 16,
    }  # fmt: skip
    config = T.Florence2Config(
        text_config={"model_type": "bart", **BART}, vision_config=vision, image_token_id=IMAGE_TOKEN
    )
    batch = image_in_text(17) | {"pixel_values": pixels(), "decoder_input_ids": ids(5)}
    return T.Florence2ForConditionalGeneration, config, batch


@family(5)
def kosmos2():
    words = {
        "vocab_size": WORDS, "embed_dim": WIDTH, "layers": LAYERS, "ffn_dim": INNER, "attention_heads": HEADS,
        "max_position_embeddings": 64, "pad_token_id": 1,
    }  # fmt: skip
    image = torch.zeros(2, 11)
    image[:, 1:5] = 1
    config = T.Kosmos2Config(text_config=words, vision_config=VISION, latent_query_num=4)
    batch = text(11) | {"pixel_values": pixels(), "image_embeds_position_mask": image}
    return T.Kosmos2Model, config, batch


@family(6)
def trocr():
    decoder = T.TrOCRConfig(
        vocab_size=WORDS, d_model=WIDTH, decoder_layers=LAYERS, decoder_attention_heads=HEADS,
        decoder_ffn_dim=INNER, max_position_embeddings=64, cross_attention_hidden_size=WIDTH,
    )  # fmt: skip
    config = T.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        T.ViTConfig(**VISION), decoder
    )
    batch = {"pixel_values": pixels(), "decoder_input_ids": ids(5)}
    return T.VisionEncoderDecoderModel, config, batch


@family(6)
def donut():
    swin = SWIN | {"depths": [1, 1], "window_size": 2}
    mbart = T.MBartConfig(
        vocab_size=WORDS, d_model=16, decoder_layers=LAYERS, decoder_attention_heads=2,
        decoder_ffn_dim=INNER, max_position_embeddings=64, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    config = T.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        T.DonutSwinConfig(**swin), mbart
    )
    batch = {"pixel_values": pixels(), "decoder_input_ids": ids(5)}
    return T.VisionEncoderDecoderModel, config, batch


@family(6)
def udop():
    config = T.UdopConfig(**T5, image_size=IMAGE, patch_size=PATCH, max_2d_position_embeddings=64)
    boxes = random(2, 7, 4).sigmoid()
    batch = text_and_image() | {"bbox": boxes, "decoder_input_ids": ids(5)}
    return T.UdopForConditionalGeneration, config, batch


# decoders that read images


@family(4)
def llava():
    config = T.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **LLAMA}, image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )  # fmt: skip
    batch = image_in_text(16) | {"pixel_values": pixels()}
    return T.LlavaForConditionalGeneration, config, batch


@family(4)
def llava_next():
    config = T.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **LLAMA}, image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-1, image_grid_pinpoints=[[32, 32]],
    )  # fmt: skip
    batch = image_in_text(36) | {
        "pixel_values": random(2, 2, 3, IMAGE, IMAGE),
        "image_sizes": torch.tensor([[32, 32], [32, 32]]),
    }
    return T.LlavaNextForConditionalGeneration, config, batch


SIGLIP_TOWER = {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION}


@family(4)
def paligemma():
    config = T.PaliGemmaConfig(
        vision_config=SIGLIP_TOWER, text_config={"model_type": "gemma", "head_dim": 8, **LLAMA},
        image_token_id=IMAGE_TOKEN, image_token_index=IMAGE_TOKEN, projection_dim=WIDTH,
        hidden_size=WIDTH,
    )  # fmt: skip
    batch = image_in_text(16)
    types = torch.zeros_like(batch["input_ids"])
    batch |= {"pixel_values": pixels(), "token_type_ids": types}
    return T.PaliGemmaForConditionalGeneration, config, batch


@family(4, note="one layer sees a sliding window")
def gemma3():
    words = LLAMA | {
        "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    config = T.Gemma3Config(
        vision_config=SIGLIP_TOWER, text_config=words, image_token_index=IMAGE_TOKEN,
        image_token_id=IMAGE_TOKEN, mm_tokens_per_image=4,
    )  # fmt: skip
    batch = image_in_text(4)
    types = (batch["input_ids"] == IMAGE_TOKEN).long()
    batch |= {"pixel_values": pixels(), "token_type_ids": types}
    return T.Gemma3ForConditionalGeneration, config, batch


def _qwen_batch():
    batch = image_in_text(4)
    batch["input_ids"][:, 0], batch["input_ids"][:, 5] = 3, 4
    return batch | {
        "pixel_values": random(32, 3 * 2 * PATCH * PATCH),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
        "mm_token_type_ids": (batch["input_ids"] == IMAGE_TOKEN).int(),
    }


QWEN_VISION = {
    "depth": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS, "patch_size": PATCH, "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}  # fmt: skip
QWEN_TOKENS = {
    "image_token_id": IMAGE_TOKEN, "vision_start_token_id": 3, "vision_end_token_id": 4,
    "video_token_id": 97,
}  # fmt: skip


@family(6, note="the image tower attends per image, one after another")
def qwen2_vl():
    config = T.Qwen2VLConfig(
        text_config=LLAMA | {"model_type": "qwen2_vl_text", "rope_parameters": MROPE},
        vision_config=QWEN_VISION | {"embed_dim": WIDTH, "mlp_ratio": 2}, **QWEN_TOKENS,
    )  # fmt: skip
    return T.Qwen2VLForConditionalGeneration, config, _qwen_batch()


@family(12, note="the image tower attends per window, one after another")
def qwen2_5_vl():
    vision = QWEN_VISION | {
        "out_hidden_size": WIDTH, "intermediate_size": INNER, "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = T.Qwen2_5_VLConfig(
        text_config=LLAMA | {"model_type": "qwen2_5_vl_text", "rope_parameters": MROPE},
        vision_config=vision, **QWEN_TOKENS,
    )  # fmt: skip
    return T.Qwen2_5_VLForConditionalGeneration, config, _qwen_batch()


@family(6)
def qwen3_vl():
    vision = QWEN_VISION | {
        "out_hidden_size": WIDTH, "intermediate_size": INNER, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    rope = MROPE | {"mrope_interleaved": True}
    config = T.Qwen3VLConfig(
        text_config=LLAMA | {"model_type": "qwen3_vl_text", "head_dim": 8, "rope_parameters": rope},
        vision_config=vision, **QWEN_TOKENS,
    )  # fmt: skip
    return T.Qwen3VLForConditionalGeneration, config, _qwen_batch()


def _one_image_each(images: int = 4):
    return image_in_text(images) | {"pixel_values": random(2, 1, 3, IMAGE, IMAGE)}


@family(5, note="a perceiver of grouped queries")
def idefics2():
    perceiver = {
        "hidden_size": WIDTH, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
        "num_key_value_heads": 1, "resampler_head_dim": 8, "hidden_act": "silu",
    }  # fmt: skip
    config = T.Idefics2Config(
        text_config={"model_type": "mistral", **LLAMA}, vision_config=VISION,
        perceiver_config=perceiver, image_token_id=IMAGE_TOKEN,
    )  # fmt: skip
    return T.Idefics2ForConditionalGeneration, config, _one_image_each()


@family(4)
def idefics3():
    config = T.Idefics3Config(
        text_config={"model_type": "llama", **LLAMA}, vision_config=VISION, scale_factor=2,
        image_token_id=IMAGE_TOKEN, pad_token_id=0,
    )  # fmt: skip
    return T.Idefics3ForConditionalGeneration, config, _one_image_each()


@family(4)
def smolvlm():
    config = T.SmolVLMConfig(
        text_config={"model_type": "llama", **LLAMA}, vision_config=VISION, scale_factor=2,
        image_token_id=IMAGE_TOKEN, pad_token_id=0,
    )  # fmt: skip
    return T.SmolVLMForConditionalGeneration, config, _one_image_each()


@family(4)
def internvl():
    vision = VISION | {"image_size": [IMAGE] * 2, "patch_size": [PATCH] * 2, "use_qk_norm": True}
    config = T.InternVLConfig(
        text_config={"model_type": "qwen2", **LLAMA}, vision_config=vision,
        image_token_id=IMAGE_TOKEN, downsample_ratio=0.5,
    )  # fmt: skip
    batch = image_in_text(4) | {"pixel_values": pixels()}
    return T.InternVLForConditionalGeneration, config, batch


@family(2)
def chameleon():
    vq = {
        "embed_dim": 16, "num_embeddings": 16, "double_latent": False, "latent_channels": 16, "resolution": 32,
        "in_channels": 3, "base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1,
    }  # fmt: skip
    words = {"<image>": IMAGE_TOKEN} | {f"IMGIMG{chr(65 + i)}Z": 60 + i for i in range(16)}
    config = T.ChameleonConfig(**LLAMA, vq_config=vq, vocabulary_map=words)
    return T.ChameleonForConditionalGeneration, config, text()


@family(6, note="gated cross-attention whose mask is an outer product")
def mllama():
    words = LLAMA | {
        "model_type": "mllama_text_model", "num_hidden_layers": 3, "cross_attention_layers": [1],
        "rope_parameters": ROPE,
    }  # fmt: skip
    vision = {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": HEADS,
        "intermediate_size": INNER, "image_size": IMAGE, "patch_size": PATCH, "max_num_tiles": 1,
        "intermediate_layers_indices": [0], "vision_output_dim": 2 * WIDTH, "supported_aspect_ratios": [[1, 1]],
    }  # fmt: skip
    config = T.MllamaConfig(text_config=words, vision_config=vision, image_token_index=IMAGE_TOKEN)
    batch = text(7)
    batch["input_ids"][:, 1] = IMAGE_TOKEN
    return (
        T.MllamaForConditionalGeneration,
        config,
        batch
        | {
            "pixel_values": random(2, 1, 1, 3, IMAGE, IMAGE),
            "aspect_ratio_ids": torch.ones(2, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(2, 1, 1, dtype=torch.long),
            "cross_attention_mask": torch.ones(2, 7, 1, 1, dtype=torch.long),
        },
    )


@family(2, note="chunked attention; routed experts")
def llama4():
    config = T.Llama4TextConfig(
        **LLAMA, head_dim=8, num_local_experts=2, intermediate_size_mlp=INNER,
        attention_chunk_size=8, interleave_moe_layer_step=2,
    )  # fmt: skip
    return T.Llama4ForCausalLM, config, text(11)


@family(4, note="the images of a batch are one sequence with a block mask")
def pixtral():
    config = T.Mistral3Config(
        text_config={"model_type": "mistral", **LLAMA},
        vision_config={"model_type": "pixtral", "head_dim": 8, **VISION},
        image_token_index=IMAGE_TOKEN, spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip
    batch = image_in_text(4) | {
        "pixel_values": pixels(),
        "image_sizes": torch.tensor([[32, 32], [32, 32]]),
    }
    return T.Mistral3ForConditionalGeneration, config, batch


@family(5, note="mixture of experts; the projector is an nn.MultiheadAttention")
def aria():
    words = LLAMA | {
        "model_type": "aria_text", "moe_num_experts": 2, "moe_topk": 1, "moe_num_shared_experts": 1,
    }  # fmt: skip
    config = T.AriaConfig(
        text_config=words, vision_config={"model_type": "idefics3_vision", **VISION},
        projector_patch_to_query_dict={16: 4}, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1,
    )  # fmt: skip
    batch = image_in_text(4) | {"pixel_values": pixels()}
    return T.AriaForConditionalGeneration, config, batch


@family(4)
def janus():
    vision = VISION | {
        "model_type": "janus_vision_model", "projection_dim": WIDTH, "num_image_tokens": 16,
        "use_qk_norm": False, "depth": 1,
    }  # fmt: skip
    vq = {
        "embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32,
        "channel_multiplier": [1, 1], "num_res_blocks": 1, "projection_dim": WIDTH, "image_token_embed_dim": WIDTH,
    }  # fmt: skip
    config = T.JanusConfig(
        text_config={"model_type": "llama", **LLAMA}, vision_config=vision, vq_config=vq,
        image_token_id=IMAGE_TOKEN,
    )  # fmt: skip
    batch = image_in_text(16) | {"pixel_values": pixels()}
    return T.JanusForConditionalGeneration, config, batch


@family(4, note="windows with decomposed relative positions")
def got_ocr2():
    vision = {
        "hidden_size": WIDTH, "output_channels": 16, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "image_size": 32, "patch_size": 2, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": INNER,
        "mlp_ratio": 2,
    }  # fmt: skip
    config = T.GotOcr2Config(
        text_config={"model_type": "qwen2", **LLAMA}, vision_config=vision,
        image_token_id=IMAGE_TOKEN, image_seq_length=16,
    )  # fmt: skip
    batch = image_in_text(16) | {"pixel_values": pixels()}
    return T.GotOcr2ForConditionalGeneration, config, batch


@family(4, note="a softmax over a visual vocabulary, which is no attention")
def ovis2():
    vision = VISION | {"vocab_size": 40, "hidden_stride": 2, "num_visual_indicator_tokens": 5}
    config = T.Ovis2Config(
        vision_config=vision, text_config={"model_type": "qwen2", **LLAMA},
        image_token_id=IMAGE_TOKEN, visual_indicator_token_ids=[10, 11, 12, 13, 14],
        vocab_size=WORDS, hidden_size=WIDTH,
    )  # fmt: skip
    batch = image_in_text(4) | {"pixel_values": pixels()}
    return T.Ovis2ForConditionalGeneration, config, batch


@family(
    9,
    other_maps=2,
    eager_differs=True,
    note="deformable attention has no product of queries and keys",
)
def grounding_dino():
    backbone = T.SwinConfig(**(SWIN | {"depths": [1, 1]}), out_features=["stage2"], out_indices=[2])
    config = T.GroundingDinoConfig(
        backbone_config=backbone, text_config={"model_type": "bert", **TEXT}, d_model=WIDTH,
        num_queries=5, encoder_layers=1, decoder_layers=1, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER,
        num_feature_levels=1, max_text_len=16, encoder_n_points=1, decoder_n_points=1,
    )  # fmt: skip
    seen = torch.ones(2, 64, 64, dtype=torch.long)
    batch = text() | {"pixel_values": pixels(64), "pixel_mask": seen}
    batch["attention_mask"] = torch.ones(2, 7, dtype=torch.long)
    return T.GroundingDinoModel, config, batch


# the ways of one modality that vision-language models are built from


@family(2)
def bert():
    return T.BertModel, T.BertConfig(**TEXT), text()


@family(3, note="windows, shifted")
def swin():
    return T.SwinModel, T.SwinConfig(**SWIN), {"pixel_values": pixels()}


@family(3, note="cosine attention in shifted windows")
def swinv2():
    return T.Swinv2Model, T.Swinv2Config(**SWIN), {"pixel_values": pixels()}


@family(2, note="relative position bias")
def beit():
    config = T.BeitConfig(**VISION, use_relative_position_bias=True, vocab_size=WORDS)
    return T.BeitModel, config, {"pixel_values": pixels()}


@family(2, note="disentangled: three products per score, written in place")
def deberta_v2():
    config = T.DebertaV2Config(
        **TEXT, relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
    )  # fmt: skip
    return T.DebertaV2Model, config, text()


@family(2, note="scores capped by tanh in eager")
def gemma2():
    config = T.Gemma2Config(**LLAMA, head_dim=8, attn_logit_softcapping=5.0)
    return T.Gemma2Model, config, text()


@family(2, note="a learned sink takes probability; routed experts")
def gpt_oss():
    config = T.GptOssConfig(**LLAMA, head_dim=8, num_local_experts=2, num_experts_per_tok=1)
    return T.GptOssModel, config, text()


@family(6, note="no scaling; one position bias for all layers")
def t5():
    return T.T5Model, T.T5Config(**T5), text() | {"decoder_input_ids": ids(5)}


# further ways, none of which the library was built on


@family(2)
def gpt2():
    config = T.GPT2Config(
        vocab_size=WORDS, n_positions=64, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True,
    )  # fmt: skip
    return T.GPT2Model, config, text()


@family(2, note="ALiBi inside baddbmm")
def bloom():
    config = T.BloomConfig(vocab_size=WORDS, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS)
    return T.BloomModel, config, text()


@family(2, note="ALiBi added to the scores")
def mpt():
    config = T.MptConfig(
        d_model=WIDTH, n_heads=HEADS, n_layers=LAYERS, max_seq_len=64, vocab_size=WORDS
    )
    return T.MptModel, config, text()


@family(2, eager_differs=True, note="one key head for all; ALiBi")
def falcon():
    config = T.FalconConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        multi_query=True, alibi=True, new_decoder_architecture=False,
    )  # fmt: skip
    return T.FalconModel, config, text()


@family(2, note="local and global windows, scores unscaled")
def gpt_neo():
    config = T.GPTNeoConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS, window_size=3,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=64, intermediate_size=INNER,
    )  # fmt: skip
    return T.GPTNeoModel, config, text()


@family(2, note="rotary on a part of each head")
def gptj():
    config = T.GPTJConfig(
        vocab_size=WORDS, n_positions=64, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, rotary_dim=4
    )
    return T.GPTJModel, config, text()


@family(2)
def codegen():
    config = T.CodeGenConfig(
        vocab_size=WORDS,
        n_positions=64,
        n_ctx=64,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        rotary_dim=4,
    )
    return T.CodeGenModel, config, text()


@family(2, note="one key head, no axis for it")
def gpt_bigcode():
    config = T.GPTBigCodeConfig(
        vocab_size=WORDS,
        n_positions=64,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        multi_query=True,
    )
    return T.GPTBigCodeModel, config, text()


@family(2, note="einsum over (q, k, b, h); a second product for relative positions")
def xlnet():
    config = T.XLNetConfig(
        vocab_size=WORDS, d_model=WIDTH, n_layer=LAYERS, n_head=HEADS, d_inner=INNER
    )
    return T.XLNetModel, config, text()


@family(4, note="pooled queries, einsum, relative attention")
def funnel():
    config = T.FunnelConfig(
        vocab_size=WORDS, block_sizes=[1, 1], num_decoder_layers=2, d_model=WIDTH, n_head=HEADS,
        d_head=8, d_inner=INNER,
    )  # fmt: skip
    return T.FunnelModel, config, text(8)


@family(2, note="one layer's module called again for each layer")
def albert():
    config = T.AlbertConfig(**TEXT, embedding_size=16)
    return T.AlbertModel, config, text()


@family(2, note="half of the heads are convolutions")
def convbert():
    config = T.ConvBertConfig(**TEXT, embedding_size=WIDTH, head_ratio=2, conv_kernel_size=3)
    return T.ConvBertModel, config, text()


@family(
    2,
    other_maps=2,
    note="queries and keys by 1x1 convolution, product and softmax in child modules",
)
def squeezebert():
    config = T.SqueezeBertConfig(**TEXT, embedding_size=WIDTH)
    return T.SqueezeBertModel, config, text()


@family(2, note="rotary")
def roformer():
    return T.RoFormerModel, T.RoFormerConfig(**TEXT, embedding_size=WIDTH), text()


@family(2, note="one position bias for all layers")
def mpnet():
    return T.MPNetModel, T.MPNetConfig(**TEXT), text()


@family(2)
def esm():
    config = T.EsmConfig(
        **SIZES, vocab_size=WORDS, pad_token_id=0, mask_token_id=3, position_embedding_type="rotary"
    )
    return T.EsmModel, config, text()


@family(2, note="disentangled, fused in_proj")
def deberta():
    config = T.DebertaConfig(**TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"])
    return T.DebertaModel, config, text()


@family(6)
def bart():
    return T.BartModel, T.BartConfig(**BART), text() | {"decoder_input_ids": ids(5)}


@family(6)
def whisper():
    config = T.WhisperConfig(
        **BART, num_mel_bins=8, max_source_positions=20, max_target_positions=20,
    )  # fmt: skip
    config.suppress_tokens = config.begin_suppress_tokens = None
    batch = {"input_features": random(2, 8, 40), "decoder_input_ids": ids(5)}
    return T.WhisperModel, config, batch


@family(6, note="queries are learned, boxes cross-attend")
def detr():
    backbone = T.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        out_features=["stage2"],
        layer_type="basic",
    )
    config = T.DetrConfig(
        use_timm_backbone=False, backbone=None, use_pretrained_backbone=False, backbone_config=backbone,
        d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER, num_queries=5,
    )  # fmt: skip
    seen = torch.ones(2, 64, 64, dtype=torch.long)
    seen[1, :, 40:] = 0
    return T.DetrModel, config, {"pixel_values": pixels(64), "pixel_mask": seen}


@family(2)
def dinov2():
    config = T.Dinov2Config(**{k: v for k, v in VISION.items() if k != "intermediate_size"})
    return T.Dinov2Model, config, {"pixel_values": pixels()}


@family(2, note="tubes of space and time")
def videomae():
    config = T.VideoMAEConfig(**VISION, num_frames=4, tubelet_size=2)
    return T.VideoMAEModel, config, {"pixel_values": random(2, 4, 3, IMAGE, IMAGE)}


@family(4, note="divided space and time: the batch of each is folded differently")
def timesformer():
    config = T.TimesformerConfig(**VISION, num_frames=2)
    return T.TimesformerModel, config, {"pixel_values": random(2, 2, 3, IMAGE, IMAGE)}


@family(2, note="keys and values reduced by strided convolution")
def segformer():
    config = T.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[4, 2], hidden_sizes=[8, 16], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
    )  # fmt: skip
    return T.SegformerModel, config, {"pixel_values": pixels()}


@family(3, note="cross-attention from learned latents, self-attention among them")
def perceiver():
    config = T.PerceiverConfig(
        num_latents=6, d_latents=WIDTH, d_model=16, num_blocks=1, num_self_attends_per_block=2,
        num_self_attention_heads=HEADS, num_cross_attention_heads=2,
    )  # fmt: skip
    return T.PerceiverModel, config, {"inputs": random(2, 9, 16)}


@family(2)
def sam_vision():
    config = T.SamVisionConfig(
        hidden_size=WIDTH, output_channels=16, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        image_size=32, patch_size=4, window_size=3, global_attn_indexes=[1], mlp_dim=INNER,
    )  # fmt: skip
    return T.SamVisionModel, config, {"pixel_values": pixels()}


@family(2)
def bros():
    config = T.BrosConfig(**(TEXT | {"hidden_size": 64}), bbox_scale=1.0)
    return T.BrosModel, config, text() | {"bbox": random(2, 7, 8).sigmoid()}


@family(4, note="text and layout: two softmaxes per layer, each of the sum of both products")
def lilt():
    config = T.LiltConfig(
        **(TEXT | {"hidden_size": 48}), max_2d_position_embeddings=64, channel_shrink_ratio=4
    )
    return T.LiltModel, config, text() | {"bbox": torch.ones(2, 7, 4, dtype=torch.long)}


@family(2)
def xlm():
    config = T.XLMConfig(
        vocab_size=WORDS, emb_dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, pad_index=0
    )
    return T.XLMModel, config, text()


@family(2, note="relative positions by einsum of the query with distances")
def wav2vec2_conformer():
    config = T.Wav2Vec2ConformerConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER,
        conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(5, 4), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, position_embeddings_type="relative", conv_depthwise_kernel_size=3,
    )  # fmt: skip
    return T.Wav2Vec2ConformerModel, config, {"input_values": random(2, 200)}


@family(2, note="multi-head latent attention: queries and keys wider than values")
def deepseek_v3():
    config = T.DeepseekV3Config(
        **{k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}, num_key_value_heads=HEADS,
        q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6,
        n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1,
        moe_intermediate_size=16,
    )  # fmt: skip
    return T.DeepseekV3Model, config, text()


@family(2, note="softmax router of a mixture of experts")
def mixtral():
    config = T.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2)
    return T.MixtralModel, config, text()
