"""Imports torch where it should only name things."""

import torch  # noqa: F401

from distillkit import LossSpec, hookimpl


@hookimpl
def distillkit_losses():
    return [LossSpec("heavy_l1", "math:dist", signature="(d),(d)->()", summary="Heavy.")]
