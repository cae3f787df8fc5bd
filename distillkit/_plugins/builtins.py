"""The core's own losses, aligners, recipes and operations, through everybody's hooks."""

from __future__ import annotations

from .hookspecs import hookimpl
from .specs import AlignerSpec, LossSpec, OperationSpec, RecipeSpec


@hookimpl
def distillkit_losses() -> list[LossSpec]:
    return [
        LossSpec(
            "attention_kl",
            "distillkit.losses:attention_kl",
            signature="attention",
            tags=("nonnegative", "zero_at_identity"),
            summary="Forward KL of attention probabilities, one value per query row.",
            reference="wang-etal-2022-distilled",
        ),
        LossSpec(
            "cosine_distance",
            "distillkit.losses:cosine_distance",
            signature="(d),(d)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric", "scale_invariant"),
            summary="One minus the cosine similarity of two vectors.",
            reference="sanh-etal-2019-distilbert",
        ),
        LossSpec(
            "kl_divergence",
            "distillkit.losses:kl_divergence",
            signature="(v),(v)->()",
            tags=("nonnegative", "zero_at_identity", "shift_invariant"),
            summary="Forward KL of softened logits: soft labels.",
            reference="hinton-etal-2015-distilling",
        ),
        LossSpec(
            "mse",
            "distillkit.losses:mse",
            signature="(d),(d)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric"),
            summary="Mean squared difference over the width.",
            reference="romero-etal-2015-fitnets",
        ),
    ]


@hookimpl
def distillkit_aligners() -> list[AlignerSpec]:
    return [
        AlignerSpec(
            "projector",
            factory="distillkit._objective.align:Projector",
            summary="A trained linear map from the student's width to the teacher's.",
        ),
    ]


@hookimpl
def distillkit_recipes() -> list[RecipeSpec]:
    return [
        RecipeSpec(
            "dide",
            resource="distillkit:recipes/dide.toml",
            summary="DiDE: soft labels and cross-modal attention of the last layer.",
        ),
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
    ]
