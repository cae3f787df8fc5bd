"""A name in capitals, with a colon."""

from distillkit import LossSpec, hookimpl


@hookimpl
def distillkit_losses():
    return [LossSpec("LOUD", "math:dist", signature="(d),(d)->()", summary="The first.")]
