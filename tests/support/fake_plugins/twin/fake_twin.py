"""Same entry point and same loss as Fake_Good, from another distribution."""

from distillkit import LossSpec, hookimpl


@hookimpl
def distillkit_losses():
    return [LossSpec("good_l1", "math:dist", signature="(d),(d)->()", summary="Another one.")]
