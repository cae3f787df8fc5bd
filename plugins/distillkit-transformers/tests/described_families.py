"""Every family that a file describes, tiny, with two examples: nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tests.support import zoo

Built = tuple[nn.Module, dict[str, Any]]
BUILDERS: dict[str, Callable[[], Built]] = {}


def family(build: Callable[[], Built]) -> Callable[[], Built]:
    BUILDERS[build.__name__] = build
    return build


def from_zoo(*names: str, first: int | None = None) -> None:
    """Families whose models are those of ``zoo``; every text starts with a token that is no word."""
    for name in names:

        def build(name: str = name) -> Built:
            model, batch = zoo.build(name)
            if first is not None:
                batch["input_ids"][:, 0] = first
            return model, batch

        build.__name__ = name
        BUILDERS[name] = build


from_zoo("altclip", "chinese_clip", "metaclip_2", "owlvit", "clipseg", "groupvit", first=1)
from_zoo(
    "qwen2_vl",
    "llava_next",
    "idefics2",
    "aria",
    "janus",
    "got_ocr2",
    "ovis2",
    "pix2struct",
    "mllama",
    "florence2",
    "grounding_dino",
)
from_zoo("git", "layoutlmv3", first=1)


def renamed(name: str, of: str) -> None:
    BUILDERS[name] = BUILDERS.pop(of)


from_zoo("pixtral")
renamed("mistral3", "pixtral")


def made(model: str, config: str | None = None, **parts: Any) -> nn.Module:
    """A model of transformers from its configuration, sharper than fresh ones are."""
    torch.manual_seed(0)
    stem = config or re.sub(r"(Model|For[A-Z]\w+)$", "", model)
    built = getattr(hf, model)(getattr(hf, f"{stem}Config")(**parts))
    zoo.sharpen(built, 4.0)
    return built.eval()


CLIP_TOWER = {"model_type": "clip_vision_model", **zoo.VISION}
SIGLIP_TOWER = {"model_type": "siglip_vision_model", "vision_use_head": False, **zoo.VISION}
LLAMA = {"model_type": "llama", **zoo.LLAMA}


@family
def x_clip() -> Built:
    vision = zoo.VISION | {
        "num_frames": 4, "mit_hidden_size": 32, "mit_intermediate_size": 32,
        "mit_num_attention_heads": 4, "mit_num_hidden_layers": 2,
    }  # fmt: skip
    model = made(
        "XCLIPModel", text_config=zoo.TEXT, vision_config=vision, projection_dim=32,
        prompt_layers=1, prompt_num_attention_heads=2,
    )  # fmt: skip
    return model, {**texts(), "pixel_values": zoo.random(2, 4, 3, 32, 32)}


@family
def owlv2() -> Built:
    return made("Owlv2Model", text_config=zoo.TEXT, vision_config=zoo.VISION), pair()


def texts() -> dict[str, Tensor]:
    """Two texts, the second padded, that start with a token that is no word."""
    batch = zoo.text()
    batch["input_ids"][:, 0] = 1
    return batch


def pair() -> dict[str, Tensor]:
    return {**texts(), "pixel_values": zoo.pixels()}


def prompts(images: int, **entries: Tensor) -> dict[str, Tensor]:
    """Words around so many image tokens."""
    return {**zoo.image_in_text(images), "pixel_values": zoo.pixels(), **entries}


@family
def vipllava() -> Built:
    model = made(
        "VipLlavaForConditionalGeneration", vision_config=CLIP_TOWER, text_config=LLAMA,
        image_token_index=zoo.IMAGE_TOKEN, vision_feature_layers=[-1, -2], vision_feature_layer=[-1, -2],
    )  # fmt: skip
    return model, prompts(16)


@family
def deepseek_vl() -> Built:
    model = made(
        "DeepseekVLForConditionalGeneration", "DeepseekVL", vision_config=SIGLIP_TOWER,
        text_config=LLAMA, image_token_id=zoo.IMAGE_TOKEN,
    )  # fmt: skip
    return model, prompts(16)


@family
def aya_vision() -> Built:
    model = made(
        "AyaVisionForConditionalGeneration", vision_config=SIGLIP_TOWER,
        text_config={**LLAMA, "model_type": "cohere2"}, image_token_index=zoo.IMAGE_TOKEN,
    )  # fmt: skip
    return model, prompts(4)


@family
def cohere2_vision() -> Built:
    model = made(
        "Cohere2VisionForConditionalGeneration", vision_config=SIGLIP_TOWER,
        text_config={**LLAMA, "model_type": "cohere2"}, image_token_id=zoo.IMAGE_TOKEN,
        alignment_intermediate_size=64,
    )  # fmt: skip
    return model, prompts(4)


def grid_decoder(model: str, text: dict[str, Any], vision: dict[str, Any], **config: Any) -> Built:
    """Qwen2-VL's kin: a 4 x 4 grid of patches, of which 2 x 2 become one token."""
    built = made(
        f"{model}ForConditionalGeneration", text_config={**zoo.LLAMA, **text},
        vision_config={**zoo.QWEN_VISION, "intermediate_size": 64, "out_hidden_size": 32, **vision},
        **zoo.QWEN_TOKENS, **config,
    )  # fmt: skip
    return built, zoo._qwen_batch()


MROPE = {"rope_parameters": {**zoo.MROPE, "partial_rotary_factor": 1.0}}


@family
def qwen3_vl_moe() -> Built:
    text = {
        **MROPE, "head_dim": 8, "moe_intermediate_size": 32, "num_experts": 4,
        "num_experts_per_tok": 2, "decoder_sparse_step": 1,
    }  # fmt: skip
    vision = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return grid_decoder("Qwen3VLMoe", text, vision)


@family
def glm4v() -> Built:
    return grid_decoder("Glm4v", MROPE, {"image_size": 32})


@family
def glm4v_moe() -> Built:
    text = {
        **MROPE, "head_dim": 8, "moe_intermediate_size": 32, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    }  # fmt: skip
    return grid_decoder("Glm4vMoe", text, {"image_size": 32})


@family
def glm46v() -> Built:
    text = {"model_type": "glm4v_text", **MROPE}
    return grid_decoder("Glm46V", text, {"model_type": "glm4v_vision", "image_size": 32})


@family
def glm_ocr() -> Built:
    return grid_decoder("GlmOcr", {**MROPE, "head_dim": 8}, {"image_size": 32})


@family
def paddleocr_vl() -> Built:
    vision = {**zoo.VISION, "spatial_merge_size": 2}
    text = {**MROPE, "head_dim": 8}
    model, batch = grid_decoder("PaddleOCRVL", text, vision)
    return model, {**batch, "pixel_values": zoo.random(32, 3, 8, 8)}


@family
def qwen3_5() -> Built:
    text = {
        **MROPE, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }  # fmt: skip
    return grid_decoder("Qwen3_5", text, {"num_position_embeddings": 16})


@family
def lighton_ocr() -> Built:
    model = made(
        "LightOnOcrForConditionalGeneration", text_config={**LLAMA, "model_type": "qwen3"},
        vision_config={"model_type": "pixtral", "head_dim": 8, **zoo.VISION},
        image_token_id=zoo.IMAGE_TOKEN, spatial_merge_size=2,
    )  # fmt: skip
    return model, prompts(4, image_sizes=torch.tensor([[32, 32]] * 2))


@family
def llava_onevision() -> Built:
    model = made(
        "LlavaOnevisionForConditionalGeneration", vision_config=SIGLIP_TOWER, text_config=LLAMA,
        image_token_index=zoo.IMAGE_TOKEN, video_token_index=97, vision_feature_layer=-1,
        image_grid_pinpoints=[[32, 32]],
    )  # fmt: skip
    tiles = zoo.random(2, 2, 3, 32, 32)
    return model, prompts(36, pixel_values=tiles, image_sizes=torch.tensor([[32, 32]] * 2))


@family
def llava_next_video() -> Built:
    model = made(
        "LlavaNextVideoForConditionalGeneration", vision_config=CLIP_TOWER, text_config=LLAMA,
        image_token_index=zoo.IMAGE_TOKEN, video_token_index=97, vision_feature_layer=-1,
        image_grid_pinpoints=[[32, 32]],
    )  # fmt: skip
    tiles = zoo.random(2, 2, 3, 32, 32)
    return model, prompts(36, pixel_values=tiles, image_sizes=torch.tensor([[32, 32]] * 2))


@family
def lfm2_vl() -> Built:
    text = {
        **zoo.LLAMA,
        "model_type": "lfm2",
        "layer_types": ["conv", "full_attention"],
        "block_ff_dim": 64,
    }
    vision = {"model_type": "siglip2_vision_model", **zoo.VISION, "num_patches": 16}
    model = made(
        "Lfm2VlForConditionalGeneration", vision_config=vision, text_config=text,
        image_token_id=zoo.IMAGE_TOKEN, projector_hidden_size=32,
    )  # fmt: skip
    return model, prompts(
        4, pixel_values=zoo.random(2, 16, 3 * 8 * 8), spatial_shapes=torch.tensor([[4, 4]] * 2),
        pixel_attention_mask=torch.ones(2, 16, dtype=torch.long),
    )  # fmt: skip


@family
def aimv2() -> Built:
    """Without eager attention, texts of equal lengths are not causal in it."""
    words = {k: v for k, v in zoo.TEXT.items() if k not in ("pad_token_id", "bos_token_id")}
    model = made("Aimv2Model", text_config=words, vision_config=zoo.VISION, projection_dim=16)
    model.set_attn_implementation("eager")
    return model, pair()


@family
def deepseek_vl_hybrid() -> Built:
    sam = {
        "model_type": "sam_vision_model", "hidden_size": 32, "output_channels": 16, "image_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4, "window_size": 4,
        "global_attn_indexes": [1], "mlp_dim": 64,
    }  # fmt: skip
    model = made(
        "DeepseekVLHybridForConditionalGeneration", "DeepseekVLHybrid", vision_config=SIGLIP_TOWER,
        high_res_vision_config=sam, text_config=LLAMA, image_token_id=zoo.IMAGE_TOKEN,
    )  # fmt: skip
    return model, prompts(16, high_res_pixel_values=zoo.pixels(64))


@family
def video_llava() -> Built:
    model = made(
        "VideoLlavaForConditionalGeneration", vision_config=CLIP_TOWER, text_config=LLAMA,
        image_token_index=zoo.IMAGE_TOKEN, video_token_index=97, vision_feature_layer=-1,
    )  # fmt: skip
    batch = zoo.image_in_text(16)
    return model, {**batch, "pixel_values_images": zoo.pixels()}


def paligemma_config() -> dict[str, Any]:
    return {
        "model_type": "paligemma", "vision_config": {**SIGLIP_TOWER, "projection_dim": 32},
        "text_config": {**zoo.LLAMA, "model_type": "gemma", "head_dim": 8},
        "image_token_id": zoo.IMAGE_TOKEN, "image_token_index": zoo.IMAGE_TOKEN,
        "projection_dim": 32, "hidden_size": 32,
    }  # fmt: skip


@family
def colpali() -> Built:
    model = made("ColPaliForRetrieval", vlm_config=paligemma_config(), embedding_dim=16)
    batch = prompts(16)
    return model, {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])}


@family
def colqwen2() -> Built:
    vlm = {
        "model_type": "qwen2_vl", **zoo.QWEN_TOKENS,
        "text_config": {**zoo.LLAMA, "model_type": "qwen2_vl_text", "rope_parameters": zoo.MROPE},
        "vision_config": {**zoo.QWEN_VISION, "embed_dim": 32, "mlp_ratio": 2},
    }  # fmt: skip
    batch = zoo._qwen_batch()
    batch["pixel_values"] = batch["pixel_values"].view(2, 16, -1)
    return made("ColQwen2ForRetrieval", vlm_config=vlm, embedding_dim=16), batch


def modernvbert_config() -> dict[str, Any]:
    text = {**zoo.TEXT, "model_type": "modernbert", "cls_token_id": 1, "sep_token_id": 2}
    return {
        "model_type": "modernvbert", "text_config": text, "vision_config": SIGLIP_TOWER,
        "image_token_id": zoo.IMAGE_TOKEN, "pixel_shuffle_factor": 2,
    }  # fmt: skip


@family
def modernvbert() -> Built:
    config = {k: v for k, v in modernvbert_config().items() if k != "model_type"}
    return made("ModernVBertModel", **config), prompts(4, pixel_values=zoo.pixels()[:, None])


@family
def colmodernvbert() -> Built:
    model = made("ColModernVBertForRetrieval", vlm_config=modernvbert_config(), embedding_dim=16)
    return model, prompts(4, pixel_values=zoo.pixels()[:, None])


@family
def fuyu() -> Built:
    text = {**zoo.LLAMA, "model_type": "persimmon"}
    model = made(
        "FuyuForCausalLM", "Fuyu", text_config=text, image_token_id=zoo.IMAGE_TOKEN, patch_size=8,
        image_size=32,
    )  # fmt: skip
    return model, prompts(16, pixel_values=zoo.random(2, 16, 3 * 8 * 8))


@family
def idefics() -> Built:
    vision = {**{k: v for k, v in zoo.VISION.items() if k != "hidden_size"}, "embed_dim": 32}
    text = {k: v for k, v in zoo.LLAMA.items() if k != "num_key_value_heads"}
    model = made(
        "IdeficsForVisionText2Text", vision_config=vision, **text, alpha_initializer="ones",
        tie_word_embeddings=False,
    )  # fmt: skip
    batch = {**texts(), "pixel_values": zoo.pixels()[:, None]}
    return model, {**batch, "image_attention_mask": torch.ones(2, 7, 1, dtype=torch.long)}


@family
def kosmos2_5() -> Built:
    text = {
        "vocab_size": 99, "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4,
        "max_position_embeddings": 64, "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "patch_embed_hidden_size": 3 * 8 * 8, "intermediate_size": 64,
        "head_dim": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "max_num_patches": 16,
    }  # fmt: skip
    model = made(
        "Kosmos2_5ForConditionalGeneration", "Kosmos2_5", text_config=text, vision_config=vision,
        latent_query_num=4,
    )  # fmt: skip
    _, _, patches = zoo.FAMILIES["pix2struct"].make()
    image = torch.zeros(2, 11, dtype=torch.long)
    image[:, 1:5] = 1
    batch = {**zoo.text(11), "flattened_patches": patches["flattened_patches"]}
    return model, {**batch, "image_embeds_position_mask": image}


@family
def mm_grounding_dino() -> Built:
    _, config, batch = zoo.FAMILIES["grounding_dino"].make()
    same = (
        "d_model", "num_queries", "encoder_layers", "decoder_layers", "encoder_attention_heads",
        "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "num_feature_levels",
        "max_text_len", "encoder_n_points", "decoder_n_points", "backbone_config", "text_config",
    )  # fmt: skip
    model = made("MMGroundingDinoModel", **{name: getattr(config, name) for name in same})
    return model, batch


@family
def ernie4_5_vl_moe() -> Built:
    text = {
        "rope_parameters": {**zoo.ROPE, "mrope_section": [1, 1, 2]}, "moe_intermediate_size": [32, 32],
        "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1,
        "mlp_layer_types": ["dense", "sparse"],
    }  # fmt: skip
    built = made(
        "Ernie4_5_VLMoeForConditionalGeneration", text_config={**zoo.LLAMA, **text},
        vision_config={**zoo.QWEN_VISION, "in_channels": 3, "intermediate_size": 64},
        image_token_id=zoo.IMAGE_TOKEN, video_token_id=97, image_start_token_id=3, image_end_token_id=4,
    )  # fmt: skip
    return built, {**zoo._qwen_batch(), "pixel_values": zoo.random(32, 3 * 8 * 8)}


@family
def exaone4_5() -> Built:
    text = {"model_type": "exaone4", "head_dim": 8, "layer_types": ["full_attention"] * 2}
    vision = {
        "num_key_value_heads": 4, "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    return grid_decoder("Exaone4_5_", text, vision)


@family
def kosmos2() -> Built:
    model, batch = zoo.build("kosmos2")
    marks = batch["image_embeds_position_mask"].long()
    return model, {**batch, "image_embeds_position_mask": marks}


def of_many_codes(quantize: nn.Module, convolution: nn.Module, *, seed: int) -> None:
    """Fresh weights make few codes; with these, another picture has another one everywhere."""
    torch.manual_seed(seed)
    with torch.no_grad():
        convolution.weight.mul_(100)
        quantize.embedding.weight.normal_()


@family
def chameleon() -> Built:
    letters = "ABCDEFGHIJ"  # of the digits, as its vocabulary writes the numbers of codes
    codes = {f"IMGIMG{''.join(letters[int(d)] for d in str(i))}Z": 60 + i for i in range(999)}
    vq = {
        "embed_dim": 16, "num_embeddings": 999, "double_latent": False, "latent_channels": 16,
        "resolution": 32, "in_channels": 3, "base_channels": 32, "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1,
    }  # fmt: skip
    model = made(
        "ChameleonForConditionalGeneration", **{**zoo.LLAMA, "vocab_size": 1100}, vq_config=vq,
        vocabulary_map={"<image>": zoo.IMAGE_TOKEN, **codes},
    )  # fmt: skip
    of_many_codes(model.model.vqmodel.quantize, model.model.vqmodel.quant_conv, seed=10)
    return model, prompts(4, pixel_values=zoo.pixels(16))


@family
def emu3() -> Built:
    vq = {
        "codebook_size": 999, "embed_dim": 16, "latent_channels": 16, "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "temporal_downsample_factor": 1, "hidden_size": 32,
    }  # fmt: skip
    vocabulary = {"<image>": zoo.IMAGE_TOKEN, "<|extra_200|>": 50}
    vocabulary |= {f"<|visual token {i:06d}|>": 60 + i for i in range(999)}
    model = made(
        "Emu3ForConditionalGeneration", text_config={**zoo.LLAMA, "vocab_size": 1100}, vq_config=vq,
        vocabulary_map=vocabulary,
    )  # fmt: skip
    of_many_codes(model.model.vqmodel.quantize, model.model.vqmodel.quant_conv.conv, seed=12)
    return model, prompts(6, pixel_values=zoo.pixels(16), image_sizes=torch.tensor([[16, 16]] * 2))


@family
def tipsv2() -> Built:
    vision = {k: v for k, v in zoo.VISION.items() if k != "intermediate_size"}
    return made("Tipsv2Model", text_config=zoo.TEXT, vision_config=vision), pair()


@family
def hunyuan_vl() -> Built:
    vision = {
        **zoo.VISION, "spatial_merge_size": 1, "out_hidden_size": 32, "num_key_value_heads": 4,
        "text_hidden_size": 32, "img_max_token_num": 16, "max_image_size": 32, "min_image_size": 32,
    }  # fmt: skip
    del vision["image_size"]
    text = {"rope_parameters": {**zoo.ROPE, "mrope_section": [1, 1, 1, 1]}, "head_dim": 8}
    model = made(
        "HunYuanVLForConditionalGeneration", text_config={**zoo.LLAMA, **text}, vision_config=vision,
        image_token_id=zoo.IMAGE_TOKEN, image_start_token_id=3, image_end_token_id=4,
    )  # fmt: skip
    batch = zoo.image_in_text(22)
    return model, {
        **batch, "pixel_values": zoo.random(32, 3 * 8 * 8),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
        "mm_token_type_ids": (batch["input_ids"] == zoo.IMAGE_TOKEN).int(),
    }  # fmt: skip


@family
def qianfan_ocr() -> Built:
    vision = {**zoo.VISION, "image_size": [32, 32], "patch_size": [8, 8]}
    model = made(
        "QianfanOCRForConditionalGeneration", vision_config=vision,
        text_config={**zoo.LLAMA, "model_type": "qwen3", "head_dim": 8},
        image_token_id=zoo.IMAGE_TOKEN, image_seq_length=4,
    )  # fmt: skip
    return model, prompts(4)


@family
def gemma4() -> Built:
    text = {
        **zoo.LLAMA, "head_dim": 8, "sliding_window": 8, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 99, "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": 8,
    }  # fmt: skip
    vision = {
        **zoo.VISION, "head_dim": 8, "num_key_value_heads": 4, "pooling_kernel_size": 2,
        "position_embedding_size": 16,
    }  # fmt: skip
    model = made(
        "Gemma4ForConditionalGeneration", text_config=text, vision_config=vision, audio_config=None,
        image_token_id=zoo.IMAGE_TOKEN, video_token_id=97, boi_token_id=96, eoi_token_id=95,
        audio_token_id=94, boa_token_id=93, eoa_token_index=92,
    )  # fmt: skip
    batch = zoo.image_in_text(4)
    batch["input_ids"] = batch["input_ids"].clamp(max=90).where(batch["input_ids"] != 98, 98)
    places = torch.stack([torch.arange(16) % 4, torch.arange(16) // 4], -1).expand(2, 16, 2)
    return model, {
        **batch, "pixel_values": zoo.random(2, 16, 3 * 8 * 8).sigmoid(), "image_position_ids": places,
        "mm_token_type_ids": (batch["input_ids"] == zoo.IMAGE_TOKEN).int(),
    }  # fmt: skip


@family
def qwen3_5_moe() -> Built:
    text = {
        **MROPE, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "moe_intermediate_size": 32, "num_experts": 4,
        "shared_expert_intermediate_size": 32, "num_experts_per_tok": 2,
    }  # fmt: skip
    return grid_decoder("Qwen3_5Moe", text, {"num_position_embeddings": 16})


@family
def cohere_compass() -> Built:
    text = {
        "rope_parameters": {"full_attention": zoo.MROPE}, "head_dim": 8,
        "layer_types": ["full_attention"] * 2,
    }  # fmt: skip
    vision = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return grid_decoder("CohereCompass", text, vision)


@family
def kimi_k25() -> Built:
    vision = {
        **{k: v for k, v in zoo.VISION.items() if k != "image_size"}, "pos_emb_height": 4,
        "pos_emb_width": 4, "merge_kernel_size": [2, 2],
    }  # fmt: skip
    model = made(
        "Kimi_K25ForConditionalGeneration", text_config=LLAMA, vision_config=vision,
        projection_hidden_size=32, **zoo.QWEN_TOKENS,
    )  # fmt: skip
    return model, {**zoo._qwen_batch(), "pixel_values": zoo.random(32, 3, 8, 8)}


@family
def t5gemma2() -> Built:
    text = {**zoo.LLAMA, "head_dim": 8, "sliding_window": 8, "layer_types": ["full_attention"] * 2}
    encoder = {
        "text_config": text, "vision_config": SIGLIP_TOWER, "mm_tokens_per_image": 4,
        "image_token_index": zoo.IMAGE_TOKEN, "boi_token_index": 97, "eoi_token_index": 96,
    }  # fmt: skip
    model = made(
        "T5Gemma2ForConditionalGeneration", encoder=encoder, decoder=text,
        image_token_index=zoo.IMAGE_TOKEN, eoi_token_index=96,
    )  # fmt: skip
    return model, prompts(4, decoder_input_ids=zoo.ids(3))


@family
def lfm3_vl() -> Built:
    text = {
        **zoo.LLAMA,
        "model_type": "lfm2",
        "layer_types": ["conv", "full_attention"],
        "block_ff_dim": 64,
    }
    vision = {
        **zoo.VISION, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"],
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    del vision["image_size"]
    model = made(
        "Lfm3VlForConditionalGeneration", vision_config=vision, text_config=text,
        projector_hidden_size=32, **zoo.QWEN_TOKENS,
    )  # fmt: skip
    return model, zoo._qwen_batch()


@family
def instructblip() -> Built:
    model, batch = zoo.build("instructblip")
    batch["qformer_input_ids"][:, 0] = 1
    return model, batch


@family
def video_llama_3() -> Built:
    vision = {k: v for k, v in zoo.VISION.items() if k != "image_size"}
    model = made(
        "VideoLlama3ForConditionalGeneration", vision_config=vision,
        text_config={**zoo.LLAMA, "model_type": "qwen2"}, image_token_id=zoo.IMAGE_TOKEN,
        video_token_id=97,
    )  # fmt: skip
    return model, prompts(
        4, pixel_values=zoo.random(32, 3 * 8 * 8), image_grid_thw=torch.tensor([[1, 4, 4]] * 2),
        image_merge_sizes=torch.tensor([2, 2]),
    )  # fmt: skip
