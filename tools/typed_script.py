"""A user's script for type checkers: what is known is asserted, what is wrong is ignored by name.

``make packages`` gives it to mypy and to pyright beside the installed wheels, and a test to mypy. To both,
an ignore that hides nothing is an error: a misspelt name that passes is seen.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import assert_type

import torch
from torch import Tensor, nn

import distillkit as dk
from distillkit import losses, testing

recipe = dk.Recipe(name="soft", terms=[{"loss": "mse", "on": "logits"}])
assert_type(recipe.override({"mse/logits.weight": 2.0}), dk.Recipe)
assert_type(dk.load_recipe("dide"), dk.Recipe)


def train(student: nn.Module, teacher: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
    """A step, with what it returns."""
    distiller = dk.Distiller(student, {"large": teacher}, recipe, student_adapter="student.toml")
    optimizer = torch.optim.AdamW(distiller.parameters())
    result = distiller(batch, progress=0.5)
    assert_type(result, dk.Distilled)
    assert_type(result.loss, Tensor)
    assert_type(result.parts, dict[str, Tensor])
    torch.autograd.backward(result.loss)  # Tensor.backward has no types
    optimizer.step()
    print(distiller.check(batch))
    return {name: float(part) for name, part in result.parts.items()}


def compare(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> Tensor:
    """An attention loss of what two models did."""
    with dk.capture(student, "*") as own, dk.capture(teacher, "*") as others:
        student(tokens)
        teacher(tokens)
    assert_type(own["0"], dk.Attention)
    rows = losses.attention_kl(own["0"], others["0"])
    assert_type(losses.masked_mean(rows), Tensor)
    return losses.masked_mean(losses.kl_divergence(tokens, tokens, temperature=2.0))


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """A loss of one's own."""
    student, teacher = losses.checked_pair("l1", "(d),(d)->()", student, teacher)
    return (student - teacher).abs().sum(-1)


spec = dk.LossSpec("l1", l1, signature="(d),(d)->()", tags=["nonnegative"])
dk.register(spec)
assert_type(testing.check_loss(spec, examples=5), list[testing.CheckResult])

dk.Distillr  # type: ignore[attr-defined]  # noqa: B018
dk.testing.chek_loss  # type: ignore[attr-defined]  # noqa: B018
dk.losses.kl_divergance  # type: ignore[attr-defined]  # noqa: B018
dk.Recipe(name="x", term=[])  # type: ignore[call-arg]
