"""Every packaged recipe: right to 1e-6 beside plain torch, and it trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distillkit as dk
from distillkit._plugins.registry import provided

from .by_hand.trials import TRIALS

STEPS = 20


class Made:
    """One trial, made: two models, a batch, a distiller around them."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.trial = TRIALS[name]
        student, teacher, batch = self.trial.pair()
        self.student, self.teacher = student.to(dtype), teacher.to(dtype)
        self.batch = {key: _floats_as(dtype, value) for key, value in batch.items()}
        recipe = dk.load_recipe(name).override(self.trial.changes)
        self.distiller = dk.Distiller(
            self.student, self.teacher, recipe, example=self.batch, **self.trial.options
        ).to(dtype)

    def by_hand(self) -> Tensor:
        return self.trial.by_hand(self.distiller, self.student, self.teacher, self.batch)


def _floats_as(dtype: torch.dtype, value: Any) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_packaged_recipe_is_tried():
    packaged = {name for name, by in provided(dk.RecipeSpec).items() if "distillkit" in by}
    assert packaged == TRIALS.keys()


@pytest.mark.parametrize("name", TRIALS)
def test_the_check_passes_and_the_guide_says_who_it_is_for(name):
    made, recipe = Made(name), dk.load_recipe(name)
    checked = made.distiller.check(made.batch)
    assert checked.passed, str(checked)
    assert recipe.summary
    assert recipe.reference
    assert recipe.equation
    assert recipe.omits
    assert all(recipe.guide.model_dump().values())


@pytest.mark.parametrize("name", TRIALS)
def test_a_step_equals_plain_torch(name):
    made = Made(name, torch.float64)
    without_dropout(made.student)
    found = made.distiller(made.batch, progress=0.0).loss
    found.backward()
    ours = gradients(made.student)
    made.student.zero_grad()
    expected = made.by_hand()
    expected.backward()
    theirs = gradients(made.student)
    torch.testing.assert_close(found, expected, rtol=made.trial.close, atol=made.trial.close)
    for key in ours.keys() | theirs.keys():
        zero = torch.zeros((), dtype=torch.float64)
        one, other = torch.broadcast_tensors(ours.get(key, zero), theirs.get(key, zero))
        torch.testing.assert_close(one, other, rtol=100 * made.trial.close, atol=made.trial.close)


@pytest.mark.parametrize("name", TRIALS)
def test_twenty_steps_lower_every_part(name):
    made = Made(name)
    without_dropout(made.student)
    optimizer = torch.optim.Adam(made.distiller.parameters(), lr=made.trial.rate)
    parts: list[dict[str, Any]] = []
    for step in range(STEPS + 1):
        result = made.distiller(made.batch, progress=step / STEPS)
        parts.append({part: value.item() for part, value in result.parts.items()})
        if step < STEPS:
            result.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for part, first in parts[0].items():
        if part not in made.trial.flat:
            assert parts[-1][part] < first, (part, first, parts[-1][part])
