"""DistillationTrainer with a signal cache in the teacher's place: ``make loops``."""

from __future__ import annotations

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("accelerate")

from transformers import default_data_collator

import distillkit as dk
from distillkit.errors import CacheError, SignalError
from tests.support import small_trainings as small
from tests.support.small_trainings import ATTENTION, LOGITS, SGD

pytestmark = pytest.mark.filterwarnings("ignore")
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def with_ids(data):
    return [{**one, "id": i, "note": f"no model takes {i}"} for i, one in enumerate(data)]


def batches_of(data, size=4):
    plain = [{name: x for name, x in one.items() if name != "note"} for one in data]
    return [default_data_collator(plain[i : i + size]) for i in range(0, len(data), size)]


def cached(place, teacher, recipe, data):
    cache = dk.SignalCache(place, recipe)
    cache.fill(teacher, batches_of(data), progress=False)
    return cache


PAIRS = {
    "fusion": (small.towers, small.vilt, ATTENTION, small.pairs),
    "decoder": (small.llava, small.llava, LOGITS, small.prompts),
    "answers": (small.answering, small.answering, LOGITS, small.questions),
}


@pytest.fixture(params=PAIRS)
def pair(request, tmp_path):
    """A student, a teacher, its cache, their recipe and data with ids and a column too many."""
    student, teacher, recipe, data = PAIRS[request.param]
    torch.manual_seed(0)
    examples = with_ids(data())
    made, taught = sharp(student()), sharp(teacher())
    return made, taught, cached(tmp_path / "cache", taught, recipe, examples), recipe, examples


def sharp(model):
    """Attention that is not the same for all keys, as that of weights that are fresh."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(one in name for one in ("query.weight", "key.weight", "q_proj", "k_proj")):
                parameter.mul_(40)
    return model


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("parts", [1, 2])
def test_training_is_that_with_the_teacher(parts, pair, tmp_path):
    student, teacher, cache, recipe, data = pair
    changes = {**SGD, "gradient_accumulation_steps": parts, "max_steps": 2}
    ran, read = (
        small.trainer_of(tmp_path, student, one, recipe, data, **changes)
        for one in (teacher, cache)
    )
    ran.train()
    read.train()
    assert read.distiller.teacher is None
    torch.testing.assert_close(small.learned(read), small.learned(ran), **CLOSE)
    assert losses(read) == pytest.approx(losses(ran), rel=1e-4, abs=1e-5)
    assert (small.flat(read.model) - small.flat(student)).abs().max() > 1e-5


def test_the_column_with_the_ids_is_kept_and_others_are_not(pair, tmp_path):
    student, _, cache, recipe, data = pair
    trainer = small.trainer_of(tmp_path, student, cache, recipe, data)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["id"].tolist() == [0, 1]
    assert "note" not in batch
    assert set(cache.header.compared) <= set(batch)


def test_examples_without_ids_are_an_error(pair, tmp_path):
    student, _, cache, recipe, data = pair
    bare = [{name: x for name, x in one.items() if name != "id"} for one in data]
    trainer = small.trainer_of(tmp_path, student, cache, recipe, bare)
    with pytest.raises(SignalError, match="finds examples by the entry 'id'"):
        trainer.train()


def test_other_examples_are_an_error(pair, tmp_path):
    student, _, cache, recipe, data = pair
    turned = [{**one, "pixel_values": one["pixel_values"].flip(-1)} for one in data]
    trainer = small.trainer_of(tmp_path, student, cache, recipe, turned)
    with pytest.raises(CacheError, match="'pixel_values' is not what the teacher saw"):
        trainer.train()


@pytest.mark.parametrize("pair", ["answers", "decoder"], indirect=True)
def test_evaluation_needs_no_cache_unless_the_terms_are_asked_for(pair, tmp_path):
    student, teacher, cache, recipe, data = pair
    others = with_ids(PAIRS["answers" if "num_labels" in vars(student) else "decoder"][3]())
    others = [{**one, "id": 100 + i} for i, one in enumerate(others)]
    trainer = small.trainer_of(tmp_path, student, cache, recipe, data, eval_dataset=others)
    assert trainer.evaluate()["eval_loss"] > 0
    ran, read = (
        small.trainer_of(
            tmp_path, student, one, recipe, data, eval_dataset=data, evaluate_distillation=True
        ).evaluate()
        for one in (teacher, cache)
    )
    assert read["eval_distillation_loss"] == pytest.approx(ran["eval_distillation_loss"], rel=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_join_the_signals(workers, pair, tmp_path):
    student, teacher, cache, recipe, data = pair
    collate = cache.joining(default_data_collator)
    changes = {**SGD, "data_collator": collate, "dataloader_num_workers": workers}
    read = small.trainer_of(tmp_path, student, None, recipe, data, **changes)
    ran = small.trainer_of(tmp_path, student, teacher, recipe, data, **SGD)
    ran.train()
    read.train()
    torch.testing.assert_close(small.learned(read), small.learned(ran), **CLOSE)
