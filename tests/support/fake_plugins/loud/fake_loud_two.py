"""A second plugin of the distribution with a loss of the same name."""

from distillkit import LossSpec, hookimpl


@hookimpl
def distillkit_losses():
    return [LossSpec("LOUD", "math:dist", signature="(d),(d)->()", summary="The second.")]
