"""Every reference is wrong, which listing cannot see."""

from distillkit import (
    AdapterSpec,
    AlignerSpec,
    LossSpec,
    OperationSpec,
    RecipeSpec,
    WeightingSpec,
    hookimpl,
)


@hookimpl
def distillkit_losses():
    return [
        LossSpec("unresolved_l1", "math:dits", signature="(d),(d)->()"),
        LossSpec("mse", "math:pi", signature="(d),(d)->()"),
    ]


@hookimpl
def distillkit_adapters():
    return [AdapterSpec("unresolved", matches="*.Nothing", factory="no_such_module:adapter")]


@hookimpl
def distillkit_aligners():
    return [AlignerSpec("unresolved_aligner", factory="math:pi")]


@hookimpl
def distillkit_recipes():
    return [RecipeSpec("unresolved_recipe", resource="distillkit:recipes/no_such_file.toml")]


@hookimpl
def distillkit_operations():
    return [OperationSpec("unresolved_operation", target="math:sqr", read="math:sqrt")]


@hookimpl
def distillkit_weightings():
    return [WeightingSpec("unresolved_weighting", factory="math:pie")]
