"""Its metadata is gone."""

from distillkit import LossSpec, hookimpl


@hookimpl
def distillkit_losses():
    return [LossSpec("damaged_l1", "math:dist", signature="(d),(d)->()", summary="Damaged.")]
