"""The core's own losses, aligners, recipes and operations, through everybody's hooks."""

from __future__ import annotations

from .catalogue import catalogue
from .hookspecs import hookimpl
from .specs import AlignerSpec, LossSpec, OperationSpec, RecipeSpec

_RECIPES = {
    "clip_affinity": "TinyCLIP: a small dual encoder matches images and texts as a large one.",
    "clip_kd": "CLIP-KD: embeddings, contrast with the teacher's, matching over the batch.",
    "dide": "DiDE: soft labels and cross-modal attention of the last layer.",
    "dide_attention": "DiDE's attention part, both directions, also where tokens differ.",
    "dide_text_to_image": "One direction, for teachers without image-to-text attention.",
    "minilm_v2": "MiniLMv2: relations between tokens' queries, keys and values, in both towers.",
}


@hookimpl
def distillkit_losses() -> list[LossSpec]:
    return [entry.spec for entry in catalogue()]


@hookimpl
def distillkit_aligners() -> list[AlignerSpec]:
    return [
        AlignerSpec(
            "drop_special",
            factory="distillkit._objective.align.special:DropSpecial",
            summary="Both sides without the special tokens ([CLS]) that only one side has.",
        ),
        AlignerSpec(
            "head_map",
            factory="distillkit._objective.align.head_map:HeadMap",
            summary="A trained mixture of the student's heads for each of the teacher's.",
        ),
        AlignerSpec(
            "match_tokens",
            factory="distillkit._objective.align.match_tokens:MatchTokens",
            summary="The tokens of both sides in pairs of the least total distance.",
        ),
        AlignerSpec(
            "overlap",
            factory="distillkit._objective.align.overlap:Overlap",
            summary="The teacher's attention on the student's tokens, by where both lie.",
        ),
        AlignerSpec(
            "projector",
            factory="distillkit._objective.align.projector:Projector",
            summary="A trained linear map from the student's width to the teacher's.",
        ),
        AlignerSpec(
            "truncate",
            factory="distillkit._objective.align.vocabulary:truncate",
            summary="The classes that both vocabularies have.",
        ),
        AlignerSpec(
            "mask",
            factory="distillkit._objective.align.vocabulary:mask",
            summary="The larger vocabulary, classes of one side alone banned on both.",
        ),
    ]


@hookimpl
def distillkit_recipes() -> list[RecipeSpec]:
    return [
        RecipeSpec(name, resource=f"distillkit:recipes/{name}.toml", summary=summary)
        for name, summary in _RECIPES.items()
    ]


@hookimpl
def distillkit_operations() -> list[OperationSpec]:
    return [
        OperationSpec(
            "scaled_dot_product_attention",
            target="torch.nn.functional:scaled_dot_product_attention",
            read="distillkit._capture.operations:read_scaled_dot_product_attention",
            summary="PyTorch's fused attention, whichever kernel runs it.",
        ),
        OperationSpec(
            "flex_attention",
            target="torch.nn.attention.flex_attention:flex_attention",
            read="distillkit._capture.operations:read_flex_attention",
            summary="PyTorch's attention with a score function and a block mask of one's own.",
        ),
    ]
