"""Imports well and fails when it is asked."""

from distillkit import AdapterSpec, LossSpec, hookimpl


@hookimpl
def distillkit_adapters():
    return [AdapterSpec("raising", matches="*", factory="math:sqrt")]


@hookimpl
def distillkit_losses():
    return [LossSpec("", "math:dist", signature="(d),(d)->()")]
