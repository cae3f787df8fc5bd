"""What this distribution hands to distillkit: names and references; nothing is imported here."""

from __future__ import annotations

from distillkit import AdapterSpec, hookimpl, signals_of_file

from .listing import listed

_MODELS = "transformers.models"
_CAUSAL = {
    "gemma3": "Gemma3",
    "idefics3": "Idefics3",
    "internvl": "InternVL",
    "llava": "Llava",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "smolvlm": "SmolVLM",
}
_BOTH = ("attention.image_to_text", "attention.text_to_image")
_JOINT = (*_BOTH, "attention.joint", "hidden.joint")
_LAYERS_OF_TOWERS = ("hidden.image", "hidden.text")
_EMBEDDINGS = ("embedding.image", "embedding.text")
_TOWERS = (*_BOTH, "attention.image", "attention.text", *_LAYERS_OF_TOWERS, *_EMBEDDINGS)
_DECODER = ("attention.joint", "attention.text_to_image", "hidden.joint", "logits")


def _spec(
    name: str, folder: str, classes: str, factory: str, summary: str, offers: tuple[str, ...]
) -> AdapterSpec:
    return AdapterSpec(
        name,
        matches=f"{_MODELS}.{folder}.modeling_{folder}.{classes}",
        factory=f"distillkit_transformers.{factory}",
        summary=summary,
        offers=offers,
    )


@hookimpl
def distillkit_adapters() -> list[AdapterSpec]:
    """One adapter for each family."""
    return [
        _spec("vilt", "vilt", "Vilt*", "single_stream:vilt",
              "ViLT: both directions; patches back in raster order.", (*_JOINT, "logits")),
        _spec("visual_bert", "visual_bert", "VisualBert*", "single_stream:visual_bert",
              "VisualBERT: both directions over regions.", _JOINT),
        _spec("flava", "flava", "Flava*", "single_stream:flava",
              "FLAVA's multimodal encoder: both directions.", (*_JOINT, *_EMBEDDINGS)),
        _spec("lxmert", "lxmert", "Lxmert*", "cross_attention:lxmert",
              "LXMERT: both directions over regions.", (*_BOTH, *_LAYERS_OF_TOWERS)),
        _spec("bridgetower", "bridgetower", "BridgeTower*", "cross_attention:bridgetower",
              "BridgeTower: both directions.", (*_BOTH, *_LAYERS_OF_TOWERS, "logits")),
        _spec("blip", "blip", "BlipFor*", "cross_attention:blip",
              "BLIP matching, answering, captioning: text-to-image.",
              ("attention.text_to_image", *_LAYERS_OF_TOWERS, "logits")),
        _spec("blip_2", "blip_2", "Blip2For*", "cross_attention:blip_2",
              "BLIP-2's Q-Former: learned queries over patches.",
              ("attention.joint", "attention.query_to_image", *_EMBEDDINGS, "hidden.image",
               "hidden.joint", "hidden.query", "logits")),
        _spec("paligemma", "paligemma", "PaliGemma*", "decoder:prefix",
              "PaliGemma: both directions within the prefix.", (*_JOINT, "logits")),
        *(
            _spec(folder, folder, f"{classes}*", "decoder:causal",
                  f"{classes}: text-to-image of a causal decoder.", _DECODER)
            for folder, classes in _CAUSAL.items()
        ),
        _spec("blip_dual_encoder", "blip", "BlipModel", "dual:dual_encoder",
              "BLIP's two towers.", _TOWERS),
        _spec("clip", "clip", "CLIPModel", "dual:dual_encoder",
              "CLIP: two towers, both directions by their queries and keys.", _TOWERS),
        _spec("siglip", "siglip", "SiglipModel", "dual:dual_encoder",
              "SigLIP: two towers without a [CLS].", _TOWERS),
        _spec("siglip2", "siglip2", "Siglip2Model", "dual:dual_encoder",
              "SigLIP2: two towers, images of their own shapes.", _TOWERS),
        _spec("vision_text_dual_encoder", "vision_text_dual_encoder",
              "VisionTextDualEncoderModel", "dual:dual_encoder",
              "Any vision and text tower of transformers.", _TOWERS),
        AdapterSpec(
            "vilt_dual_encoder",
            matches="distillkit_transformers.vilt_dual_encoder.ViltDualEncoder",
            factory="distillkit_transformers.vilt_adapter:vilt_dual_encoder",
            summary="Two towers from one ViLT, DiDE's student: both directions.",
            offers=(*_TOWERS, "logits"),
        ),
        *(
            AdapterSpec(
                name,
                matches=f"{_MODELS}.{family.matches}",
                factory=f"distillkit_transformers.described:{name}",
                summary=family.summary,
                offers=signals_of_file(family.tables),
            )
            for name, family in listed().items()
        ),
    ]  # fmt: skip
