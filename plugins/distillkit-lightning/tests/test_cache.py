"""A module with a signal cache in the teacher's place trains as with the teacher."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning")

import torch
from distillkit_lightning import DistillationModule
from torch.utils.data import DataLoader, default_collate

import distillkit as dk
from tests.loops.lightning_trainings import (
    SGD,
    assert_close,
    module_of,
    trainer_of,
    weights,
    without_dropout,
)
from tests.support.lightning_pairs import DUAL, FUSION, RECIPE, Dual, examples, task_loss

pytestmark = pytest.mark.filterwarnings("ignore")


def loader_of(collate=default_collate):
    keyed = [{**one, "id": i} for i, one in enumerate(examples(8))]
    return DataLoader(keyed, batch_size=2, collate_fn=collate)


def with_ids(teacher):
    """The same module with another teacher, for batches with ids."""
    torch.manual_seed(0)
    own = {"teacher_adapter": FUSION} if isinstance(teacher, torch.nn.Module) else {}
    return without_dropout(
        DistillationModule(
            Dual().eval(),
            teacher,
            RECIPE,
            student_adapter=DUAL,
            ignore=["labels", "id"],
            optimizer=SGD,
            task_loss=task_loss,
            **own,
        )
    )


@pytest.mark.parametrize("joined", [False, True])
def test_it_trains_and_is_saved_as_with_the_teacher(joined, tmp_path):
    teacher = module_of().distiller.teacher
    cache = dk.SignalCache(tmp_path / "cache", RECIPE)
    cache.fill(dk.Backbone(teacher, FUSION), loader_of(), progress=False)
    ran, read = with_ids(teacher), with_ids(None if joined else cache)
    before = weights(read)
    trainer_of(tmp_path).fit(ran, loader_of())
    trainer = trainer_of(tmp_path)
    trainer.fit(read, loader_of(cache.joining(default_collate)) if joined else loader_of())
    assert_close(weights(read), weights(ran), 1e-5)
    assert any(not torch.equal(x, before[name]) for name, x in weights(read).items())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    assert set(torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"]) == set(before)
