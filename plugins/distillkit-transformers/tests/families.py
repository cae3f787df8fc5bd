"""Every family, built from a tiny configuration, with two examples: nothing is downloaded.

A builder returns (model, batch). Texts have unequal lengths where the model takes a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

Built = tuple[nn.Module, dict[str, Tensor]]
FAMILIES: dict[str, Callable[[], Built]] = {}

TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
IMAGE = {**TEXT, "image_size": 32, "patch_size": 8}
del IMAGE["vocab_size"]
PLACES = {"max_position_embeddings": 40}
LLAMA = {**TEXT, "num_key_value_heads": 2, "max_position_embeddings": 128}
LENGTHS = (7, 5)


def family(build: Callable[[], Built]) -> Callable[[], Built]:
    FAMILIES[build.__name__] = build
    return build


def words(length: int = 7) -> Tensor:
    return torch.randint(5, 90, (2, length))


def mask(lengths: tuple[int, int] = LENGTHS) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def pixels(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size)


def pair() -> dict[str, Tensor]:
    seen = mask()
    return {"input_ids": words() * seen, "attention_mask": seen, "pixel_values": pixels()}


def spread(model: nn.Module) -> nn.Module:
    """Attention of fresh models is uniform: larger queries and keys make it tell tokens apart."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and any(
                part in name for part in ("query", "key", "q_proj", "k_proj", "qkv")
            ):
                parameter.mul_(4)
    return model


# ------------------------------------------------------------------------------- single stream


def vilt_config(**changes: Any) -> hf.ViltConfig:
    return hf.ViltConfig(
        **{**TEXT, **PLACES, "image_size": 32, "patch_size": 8, "num_labels": 9, **changes}
    )


@family
def vilt() -> Built:
    return hf.ViltModel(vilt_config()), {**pair(), "pixel_mask": torch.ones(2, 32, 32).long()}


@family
def vilt_answering() -> Built:
    return hf.ViltForQuestionAnswering(vilt_config()), pair()


@family
def vilt_of_unequal_images() -> Built:
    """The second image fills the left half of the first one's size."""
    batch = {**pair(), "pixel_mask": torch.ones(2, 32, 32).long()}
    batch["pixel_mask"][1, :, 16:] = 0
    return hf.ViltModel(vilt_config()), batch


@family
def vilt_of_two_images() -> Built:
    """NLVR2: each text with two images, of which some are smaller."""
    batch = {**pair(), "pixel_values": torch.rand(2, 2, 3, 32, 32)}
    batch["pixel_mask"] = torch.ones(2, 2, 32, 32).long()
    batch["pixel_mask"][:, 1, :, 16:] = 0
    config = vilt_config(num_images=2, modality_type_vocab_size=3)
    return hf.ViltForImagesAndTextClassification(config), batch


@family
def visual_bert() -> Built:
    config = hf.VisualBertConfig(**TEXT, visual_embedding_dim=16)
    regions = mask((10, 8))
    batch = {
        "input_ids": words() * mask(), "attention_mask": mask(),
        "visual_embeds": torch.rand(2, 10, 16), "visual_attention_mask": regions,
        "visual_token_type_ids": torch.ones(2, 10).long(),
    }  # fmt: skip
    return hf.VisualBertModel(config), batch


@family
def flava() -> Built:
    fusion = {k: v for k, v in TEXT.items() if k != "vocab_size"}
    config = hf.FlavaConfig(
        image_config=IMAGE, text_config=TEXT, multimodal_config=fusion,
        hidden_size=32, projection_dim=16,
    )  # fmt: skip
    return hf.FlavaModel(config), pair()


# ----------------------------------------------------------------------------- cross attention


@family
def lxmert() -> Built:
    config = hf.LxmertConfig(
        vocab_size=100, hidden_size=32, num_attention_heads=4, intermediate_size=64,
        l_layers=2, x_layers=2, r_layers=1, visual_feat_dim=16, visual_pos_dim=4, **PLACES,
    )  # fmt: skip
    batch = {
        "input_ids": words() * mask(), "attention_mask": mask(),
        "visual_feats": torch.rand(2, 10, 16), "visual_pos": torch.rand(2, 10, 4),
        "visual_attention_mask": mask((10, 8)),
    }  # fmt: skip
    return hf.LxmertModel(config), batch


@family
def bridgetower() -> Built:
    width = {"hidden_size": 128, "num_hidden_layers": 2}
    config = hf.BridgeTowerConfig(
        **width, num_attention_heads=4, text_config={**TEXT, **width, **PLACES},
        vision_config={**width, "num_hidden_layers": 3, "patch_size": 8, "image_size": 32},
    )  # fmt: skip
    return hf.BridgeTowerForImageAndTextRetrieval(config), pair()


def blip_config() -> hf.BlipConfig:
    text = {
        **TEXT, **PLACES, "encoder_hidden_size": 32, "projection_dim": 16,
        "bos_token_id": 1, "pad_token_id": 0, "sep_token_id": 2, "eos_token_id": 2,
    }  # fmt: skip
    return hf.BlipConfig(
        text_config=text, vision_config={**IMAGE, "projection_dim": 16},
        projection_dim=16, image_text_hidden_size=16,
    )  # fmt: skip


@family
def blip_matching() -> Built:
    return hf.BlipForImageTextRetrieval(blip_config()), pair()


@family
def blip_answering() -> Built:
    return hf.BlipForQuestionAnswering(blip_config()), {**pair(), "labels": words(3)}


@family
def blip_captioning() -> Built:
    return hf.BlipForConditionalGeneration(blip_config()), pair()


@family
def blip_2_matching() -> Built:
    config = blip_2_config(use_qformer_text_input=True)
    batch = {**pair(), "use_image_text_matching_head": True}
    placeholders = torch.full((2, 4), 99)
    batch["input_ids"] = torch.cat([placeholders, batch["input_ids"]], 1)
    batch["attention_mask"] = torch.cat([torch.ones_like(placeholders), batch["attention_mask"]], 1)
    return hf.Blip2ForImageTextRetrieval(config), batch  # type: ignore[return-value]


@family
def blip_2_generating() -> Built:
    ids = torch.cat([torch.full((2, 4), 99), words()], 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels()}
    return hf.Blip2ForConditionalGeneration(blip_2_config()), batch


def blip_2_config(**changes: Any) -> hf.Blip2Config:
    language = {
        "model_type": "opt", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 64,
        "word_embed_proj_dim": 32, "pad_token_id": 1,
    }  # fmt: skip
    reader = {**TEXT, "encoder_hidden_size": 32, "cross_attention_frequency": 2, **changes}
    return hf.Blip2Config(
        vision_config=IMAGE, qformer_config=reader, text_config=language,
        num_query_tokens=4, image_token_index=99, image_text_hidden_size=16,
    )  # fmt: skip


# ------------------------------------------------------------------------------------ decoders


def prompt(image: int, count: int, *, before: int = 2, around: tuple[int, ...] = ()) -> Tensor:
    """Words, the image's placeholders, words."""
    parts = [words(before), *(torch.full((2, 1), one) for one in around[:1])]
    parts += [torch.full((2, count), image), *(torch.full((2, 1), one) for one in around[1:])]
    return torch.cat([*parts, words(5)], 1)


def prompted(ids: Tensor, **more: Tensor) -> dict[str, Tensor]:
    seen = torch.ones_like(ids)
    seen[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": seen, "pixel_values": pixels(), **more}


@family
def llava() -> Built:
    config = hf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **IMAGE},
        text_config={"model_type": "llama", **LLAMA}, image_token_id=99, vision_feature_layer=-1,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config), prompted(prompt(99, 16))


@family
def llava_padded_left() -> Built:
    model, batch = llava()
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["input_ids"][1] = batch["input_ids"][1].roll(2)  # its first two words are padding now
    batch["attention_mask"][1, :2] = 0
    return model, batch


@family
def paligemma() -> Built:
    text = {**LLAMA, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8}
    vision = {**IMAGE, "model_type": "siglip_vision_model", "projection_dim": 32,
              "vision_use_head": False}  # fmt: skip
    config = hf.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_id=99, projection_dim=32
    )
    ids = torch.cat([torch.full((2, 16), 99), words(6)], 1)
    batch = prompted(ids, token_type_ids=torch.zeros_like(ids))
    return hf.PaliGemmaForConditionalGeneration(config), batch


def qwen(model: str, vision: Mapping[str, Any]) -> Built:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    text = {**LLAMA, "rope_parameters": rope, "head_dim": 8, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    config = getattr(hf, f"{model}Config")(
        text_config=text, vision_config=dict(vision), image_token_id=97, video_token_id=96,
        vision_start_token_id=98, vision_end_token_id=95,
    )  # fmt: skip
    ids = prompt(97, 4, around=(98, 95))  # a 4 x 4 grid, merged 2 x 2
    batch = prompted(ids, mm_token_type_ids=(ids == 97).int())
    batch["pixel_values"] = torch.rand(2 * 16, 3 * 2 * 8 * 8)
    batch["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
    return getattr(hf, f"{model}ForConditionalGeneration")(config), batch


_QWEN = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "in_channels": 3,
         "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
         "out_hidden_size": 32}  # fmt: skip


@family
def qwen2_5_vl() -> Built:
    return qwen("Qwen2_5_VL", {**_QWEN, "window_size": 16, "fullatt_block_indexes": [1]})


@family
def qwen3_vl() -> Built:
    more = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return qwen("Qwen3VL", {**_QWEN, **more})


def shuffled_down(model: str) -> Built:
    config = getattr(hf, f"{model}Config")(
        vision_config=IMAGE, text_config={**LLAMA, "model_type": "llama", "pad_token_id": 0},
        image_token_id=99, scale_factor=2,
    )  # fmt: skip
    batch = prompted(prompt(99, 4))
    batch["pixel_values"] = batch["pixel_values"][:, None]
    return getattr(hf, f"{model}ForConditionalGeneration")(config), batch


@family
def smolvlm() -> Built:
    return shuffled_down("SmolVLM")


@family
def idefics3() -> Built:
    return shuffled_down("Idefics3")


@family
def internvl() -> Built:
    vision = {**IMAGE, "image_size": [32, 32], "patch_size": [8, 8]}
    config = hf.InternVLConfig(
        vision_config=vision, text_config={**LLAMA, "model_type": "qwen2"},
        image_token_id=99, image_seq_length=4,
    )  # fmt: skip
    return hf.InternVLForConditionalGeneration(config), prompted(prompt(99, 4))


@family
def gemma3() -> Built:
    text = {**LLAMA, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8}
    config = hf.Gemma3Config(
        vision_config={**IMAGE, "vision_use_head": False}, text_config=text,
        image_token_index=99, mm_tokens_per_image=4, boi_token_index=98, eoi_token_index=97,
    )  # fmt: skip
    ids = prompt(99, 4, around=(98, 97))
    batch = prompted(ids, token_type_ids=(ids == 99).long())
    model = hf.Gemma3ForConditionalGeneration(config)
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zero at first
    return model, batch


# -------------------------------------------------------------------------------- dual encoders


@family
def clip() -> Built:
    text = {**TEXT, **PLACES, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    config = hf.CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=16)
    return hf.CLIPModel(config), pair()


@family
def siglip() -> Built:
    text = {**TEXT, "max_position_embeddings": 7, "projection_size": 32}
    config = hf.SiglipConfig(text_config=text, vision_config=IMAGE)
    return hf.SiglipModel(config), {"input_ids": words(), "pixel_values": pixels()}


@family
def siglip2() -> Built:
    text = {**TEXT, "max_position_embeddings": 7, "projection_size": 32}
    vision = {k: v for k, v in IMAGE.items() if k != "image_size"} | {"num_patches": 16}
    config = hf.Siglip2Config(text_config=text, vision_config=vision)
    batch = {
        "input_ids": words(), "pixel_values": torch.rand(2, 16, 3 * 8 * 8),
        "pixel_attention_mask": mask((16, 12)), "spatial_shapes": torch.tensor([[4, 4], [3, 4]]),
    }  # fmt: skip
    return hf.Siglip2Model(config), batch


@family
def vision_text_dual_encoder() -> Built:
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(
        hf.ViTConfig(**IMAGE), hf.BertConfig(**TEXT, **PLACES), projection_dim=16
    )
    return hf.VisionTextDualEncoderModel(config), pair()


@family
def blip_towers() -> Built:
    return hf.BlipModel(blip_config()), pair()


def two_towers(task: str = "vqa", **changes: Any) -> nn.Module:
    """DiDE's student of a tiny ViLT."""
    from distillkit_transformers import ViltDualEncoder

    kind = hf.ViltForMaskedLM if task == "pretraining" else hf.ViltModel
    return ViltDualEncoder.from_vilt(kind(vilt_config(**changes)), task=task)


def tokenized() -> dict[str, Tensor]:
    """Texts and images as a tokenizer makes them: each text starts with the same [CLS]."""
    batch = pair()
    batch["input_ids"][:, 0] = 1
    return batch


@family
def vilt_dual_encoder() -> Built:
    return two_towers(), tokenized()


@family
def vilt_dual_encoder_of_unequal_images() -> Built:
    """The second image fills the left half of the first one's size."""
    batch = {**tokenized(), "pixel_mask": torch.ones(2, 32, 32).long()}
    batch["pixel_mask"][1, :, 16:] = 0
    return two_towers("ve"), batch


@family
def vilt_dual_encoder_of_two_images() -> Built:
    return two_towers("nlvr2"), {**tokenized(), "pixel_values": torch.rand(2, 2, 3, 32, 32)}


@family
def vilt_dual_encoder_of_one_image() -> Built:
    """Two texts about one image, which is read once."""
    batch = {**tokenized(), "image_index": torch.zeros(2).long()}
    return two_towers("retrieval"), {**batch, "pixel_values": pixels()[:1]}


@family
def vilt_dual_encoder_of_masked_words() -> Built:
    return two_towers("pretraining"), tokenized()
