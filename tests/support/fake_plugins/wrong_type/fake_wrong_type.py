"""Hands over the wrong kind of spec."""

from distillkit import AdapterSpec, hookimpl


@hookimpl
def distillkit_losses():
    return [AdapterSpec("wrong", matches="*", factory="math:sqrt")]
