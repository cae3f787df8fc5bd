"""A module on the path that no distribution brings."""

from distillkit import LossSpec, hookimpl


@hookimpl
def distillkit_losses():
    return [
        LossSpec("unpackaged_l1", "math:dist", signature="(d),(d)->()", summary="From a folder.")
    ]
