"""The core's own losses, aligners, recipes and so on, through everybody's hooks."""

from __future__ import annotations

from .catalogue import catalogue
from .hookspecs import hookimpl
from .specs import AlignerSpec, LossSpec, OperationSpec, RecipeSpec, WeightingSpec

_RECIPES = {
    "clip_affinity": "TinyCLIP: a small dual encoder matches images and texts as a large one.",
    "clip_kd": "CLIP-KD: embeddings, contrast with the teacher's, matching over the batch.",
    "cross_encoder_retrieval": "CPRD: a dual encoder ranks candidates as a cross-encoder does.",
    "dide": "DiDE: soft labels and cross-modal attention of the last layer.",
    "dide_attention": "DiDE's attention part, both directions, also where tokens differ.",
    "dide_nlvr2": "DiDE on NLVR2: a statement about two images.",
    "dide_pretraining": "DiDE before any task: masked words and cross-modal attention.",
    "dide_retrieval": "DiDE on retrieval: scores of candidates and cross-modal attention.",
    "dide_text_to_image": "One direction, for teachers without image-to-text attention.",
    "dide_ve": "DiDE on visual entailment, as the official code counts.",
    "dide_vqa": "DiDE on VQA, as the official code counts: every answer for itself.",
    "efficient_vlm": "EfficientVLM: answers, hidden states and attention of spaced layers.",
    "minilm_v2": "MiniLMv2: relations between tokens' queries, keys and values, in both towers.",
    "on_policy": "GKD: the teacher corrects what a decoder itself has written.",
    "vlm_attention": "CompoDistill: a decoder's answer, and where its image's tokens look.",
    "vlm_kd": "LLaVA-KD: a decoder's answer, logits at the image, relations within the image.",
    "vlm_response": "The baseline of decoders: cross-entropy and KL of the response.",
    "vlm_response_linear": "A decoder's response from hidden states: no logits are made.",
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


@hookimpl
def distillkit_weightings() -> list[WeightingSpec]:
    home = "distillkit._objective.weighting"
    return [
        WeightingSpec(
            "static",
            factory=f"{home}.making:static",
            summary="The terms' own weights, numbers and schedules, as they are.",
        ),
        WeightingSpec(
            "uncertainty",
            factory=f"{home}.uncertainty:Uncertainty",
            summary="One learned log variance for each term.",
            reference="kendall-etal-2018-multi",
        ),
        WeightingSpec(
            "dynamic_average",
            factory=f"{home}.dynamic_average:DynamicAverage",
            summary="Terms that fall slower than the others weigh more.",
            reference="liu-etal-2019-end",
        ),
        WeightingSpec(
            "gradnorm",
            factory=f"{home}.gradnorm:GradNorm",
            summary="Norms of the terms' gradients that follow their training rates.",
            reference="chen-etal-2018-gradnorm",
        ),
        WeightingSpec(
            "gradient_ratio",
            factory=f"{home}.gradient_ratio:GradientRatio",
            summary="Norms of the terms' gradients at given parts of one term's.",
            reference="esser-etal-2021-taming",
        ),
        WeightingSpec(
            "torchjd",
            factory=f"{home}.jacobian_descent:JacobianDescent",
            summary="Gradients that do not work against each other: an aggregator of TorchJD.",
            reference="quinton-rey-2024-jacobian",
        ),
    ]
