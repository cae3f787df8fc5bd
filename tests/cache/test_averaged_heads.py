"""Where a recipe compares the mean over heads, one map is stored for all of them."""

from __future__ import annotations

import pytest
import torch

import distillkit as dk
from distillkit.errors import CacheError
from tests.support import tiny


def recipe(**options):
    term = {"loss": "attention_kl", "on": "attention.text_to_image", "options": options}
    return dk.Recipe(name="test", terms=[term])


def filled(folder, teacher, asked):
    cache = dk.SignalCache(folder, asked)
    backbone = dk.Backbone(teacher, dk.DeclarativeAdapter(**tiny.FUSION_TABLES))
    cache.fill(backbone, [{**tiny.batch(), "id": [0, 1, 2]}], progress=False)
    return cache


def loss(teacher, asked, batch, student, **adapter):
    distiller = dk.Distiller(
        student, teacher, asked,
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES), ignore=["labels", "id"],
        **adapter,
    )  # fmt: skip
    return distiller(batch).loss


def test_the_mean_alone_is_stored_and_worth_the_same(tmp_path):
    teacher, student, batch = tiny.Fusion(), tiny.Dual(), {**tiny.batch(), "id": [0, 1, 2]}
    averaged = filled(tmp_path / "mean", teacher, recipe(heads="mean"))
    whole = filled(tmp_path / "all", teacher, recipe())
    name = "attention.text_to_image"
    assert averaged.signals([0])[name][-1].shape[1] == 1
    assert averaged.sizes()[name] * tiny.HEADS == whole.sizes()[name]
    adapter = {"teacher_adapter": dk.DeclarativeAdapter(**tiny.FUSION_TABLES)}
    expected = loss(teacher, recipe(heads="mean"), batch, student, **adapter)
    for cache in (averaged, whole):
        torch.testing.assert_close(loss(cache, recipe(heads="mean"), batch, student), expected)


@pytest.mark.parametrize("asked", [recipe(), recipe(heads="mean", temperature=2.0)])
def test_who_needs_the_heads_apart_is_refused(asked, tmp_path):
    cache = filled(tmp_path, tiny.Fusion(), recipe(heads="mean"))
    with pytest.raises(CacheError, match=r"the heads apart; their mean is stored"):
        loss(cache, asked, {**tiny.batch(), "id": [0, 1, 2]}, tiny.Dual())
