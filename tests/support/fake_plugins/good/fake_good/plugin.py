"""What Fake_Good provides; a good plugin module imports specs and nothing else."""

from distillkit import (
    AdapterSpec,
    AlignerSpec,
    LossSpec,
    OperationSpec,
    RecipeSpec,
    WeightingSpec,
    hookimpl,
)

DISTILLKIT_API = 1


@hookimpl
def distillkit_losses():
    return [
        LossSpec(
            "good_l1",
            "fake_good.parts:good_l1",
            signature="(d),(d)->()",
            tags=("nonnegative", "zero_at_identity"),
            summary="Mean absolute difference.",
            reference="nobody-2026-good",
        )
    ]


@hookimpl
def distillkit_adapters():
    return [
        AdapterSpec(
            "good-backbone",
            matches="fake_good.parts.*",
            factory="fake_good.parts:adapter",
            summary="The backbone of Fake_Good.",
        )
    ]


@hookimpl
def distillkit_aligners():
    return [AlignerSpec("good_halves", factory="fake_good.parts:Halves", summary="Every second.")]


@hookimpl
def distillkit_recipes():
    return [RecipeSpec("good_recipe", resource="fake_good:recipes/good.toml", summary="L1.")]


@hookimpl
def distillkit_operations():
    return [
        OperationSpec(
            "good_attention",
            target="fake_good.parts:fused_attention",
            read="fake_good.parts:read_fused_attention",
            summary="A kernel of its own.",
        )
    ]


@hookimpl
def distillkit_weightings():
    return [
        WeightingSpec("good_halved", factory="fake_good.parts:Halved", summary="Half of the large.")
    ]
