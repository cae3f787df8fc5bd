"""Takes its time."""

import time

from distillkit import LossSpec, hookimpl


@hookimpl
def distillkit_losses():
    return [LossSpec("slow_l1", "math:dist", signature="(d),(d)->()", summary="Slow to come.")]


time.sleep(0.2)
