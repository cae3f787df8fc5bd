"""What this package hands to distillkit: names, and where the things are that they name."""

from distillkit import AdapterSpec, LossSpec, RecipeSpec, hookimpl

DISTILLKIT_API = 1


@hookimpl
def distillkit_losses():
    return [
        LossSpec(
            "jeffreys_divergence",
            "acme_distill.losses:jeffreys_divergence",
            signature="(v),(v)->()",
            tags=("nonnegative", "zero_at_identity", "symmetric", "shift_invariant"),
            summary="Forward plus reverse KL of softened logits.",
            reference="jeffreys-1946-invariant",
        )
    ]


@hookimpl
def distillkit_adapters():
    return [
        AdapterSpec(
            "acme",
            matches="acme_distill.models.*",
            factory="acme_distill.adapter:AcmeAdapter",
            summary="Acme's fusion and dual encoders, for images of any size.",
        )
    ]


@hookimpl
def distillkit_recipes():
    return [
        RecipeSpec(
            "acme",
            resource="acme_distill:recipes/acme.toml",
            summary="DiDE with the Jeffreys divergence of the answers.",
        )
    ]
