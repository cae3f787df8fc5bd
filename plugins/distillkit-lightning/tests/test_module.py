"""A student trained by lightning: progress, logs, accumulation, evaluation, files, averages."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning")

import lightning
import torch
from distillkit_lightning import DistillationModule
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader

import distillkit as dk
from distillkit.errors import DistillKitError, OptionError
from tests.loops.lightning_trainings import (
    SGD,
    Recording,
    assert_close,
    by_hand,
    loader_of,
    module_of,
    trainer_of,
    weights,
    without_dropout,
)
from tests.support.lightning_pairs import RECIPE, TERMS, Dual, examples, projecting, task_loss

pytestmark = pytest.mark.filterwarnings("ignore")
HERE = Path(__file__).parent


def test_without_an_end_a_schedule_is_an_error(tmp_path):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from examples(4)

    trainer = trainer_of(tmp_path)
    with pytest.raises(DistillKitError, match="progress"):
        trainer.fit(module_of(), DataLoader(Endless(), batch_size=2))
    trainer_of(tmp_path, max_steps=2).fit(module_of(), DataLoader(Endless(), batch_size=2))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_it_trains_as_a_loop_by_hand_with_the_same_progress(tmp_path, accumulated):
    module, by = without_dropout(module_of()), without_dropout(module_of())
    expected = by_hand(by.distiller, loader_of(), accumulated=accumulated)
    logger = Recording()
    trainer = trainer_of(
        tmp_path, logger=logger, log_every_n_steps=1, accumulate_grad_batches=accumulated
    )
    trainer.fit(module, loader_of())
    assert_close(weights(module), weights(by))
    rows = [row for _, row in logger.rows if "train/loss" in row]
    assert len(rows) == len(expected) // accumulated
    for i, row in enumerate(rows):
        step = expected[i * accumulated : (i + 1) * accumulated]
        for name, part in step[0].parts.items():
            mean = sum(one.parts[name] for one in step) / accumulated
            assert row[f"train/{name}"] == pytest.approx(
                mean.item() if part.numel() else 0, rel=1e-5
            )
        weight = "kl_divergence/logits"
        assert row[f"train/weight/{weight}"] == pytest.approx(step[0].weights[weight])
    schedule = [row["train/weight/kl_divergence/logits"] for row in rows]
    assert schedule == sorted(schedule, reverse=True)
    assert len(set(schedule)) == len(schedule)


def test_logs_are_means_over_the_steps_since_the_last(tmp_path):
    module, by = without_dropout(module_of()), without_dropout(module_of())
    losses = [one.loss.item() for one in by_hand(by.distiller, loader_of())]
    logger = Recording()
    trainer_of(tmp_path, logger=logger, log_every_n_steps=2).fit(module, loader_of())
    logged = [row["train/loss"] for _, row in logger.rows if "train/loss" in row]
    assert logged == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-5)
    rest = Recording()
    trainer_of(tmp_path, logger=rest, log_every_n_steps=100).fit(module, loader_of())
    assert sum("train/loss" in row for _, row in rest.rows) == 1


def test_equal_parts_are_one_big_batch(tmp_path):
    terms = [{k: v for k, v in term.items() if k != "weight"} for term in TERMS]
    one, parts = (without_dropout(module_of(dk.Recipe(name="r", terms=terms))) for _ in range(2))
    trainer_of(tmp_path).fit(one, loader_of(size=8))
    trainer_of(tmp_path, accumulate_grad_batches=4).fit(parts, loader_of(size=2))
    assert_close(weights(parts), weights(one))


def test_a_normalizer_makes_unequal_parts_one_big_batch(tmp_path):
    one, parts = without_dropout(module_of()), without_dropout(module_of(normalizer=8))
    trainer_of(tmp_path).fit(one, loader_of(size=8))
    trainer = trainer_of(tmp_path, accumulate_grad_batches=3)
    trainer.fit(parts, loader_of(size=3))  # 3, 3 and 2 examples
    assert_close(weights(parts), weights(one))
    means = [m.trainer.callback_metrics["train/loss"].item() for m in (one, parts)]
    assert means[1] == pytest.approx(means[0], rel=1e-5)


def test_evaluation_is_the_students_own(tmp_path):
    def accuracy(output, batch):
        return {"accuracy": (output.logits.argmax(-1) == batch["labels"]).float().mean()}

    module, loader = module_of(metrics=accuracy), loader_of(count=5)
    calls = []
    module.distiller.teacher.register_forward_hook(
        lambda *_: calls.append(torch.is_inference_mode_enabled())
    )
    trainer = trainer_of(tmp_path)
    (found,) = trainer.validate(module, loader, verbose=False)
    assert not calls
    whole = next(iter(loader_of(count=5, size=5)))
    with torch.no_grad():
        output = module(whole)
    assert found["val/loss"] == pytest.approx(task_loss(output, whole).item(), rel=1e-5)
    assert found["val/accuracy"] == pytest.approx(accuracy(output, whole)["accuracy"].item())
    assert trainer.test(module, loader, verbose=False)[0].keys() == {"test/loss", "test/accuracy"}
    predicted = torch.cat([one.logits for one in trainer.predict(module, loader)])
    torch.testing.assert_close(predicted, output.logits)
    assert not calls
    asking = DistillationModule(distiller=module.distiller, evaluate_distillation=True)
    (found,) = trainer_of(tmp_path).validate(asking, loader, verbose=False)
    # the term whose weight ends at 0 is not computed
    computed = asking.distiller.eval()(whole, progress=1.0).parts
    assert found.keys() == {"val/loss", *(f"val/{name}" for name in computed)}
    assert calls[0]


def test_evaluation_within_training_leaves_it_as_it_is(tmp_path):
    without, with_it = module_of(), module_of(evaluate_distillation=True)
    for module, validation in ((without, None), (with_it, loader_of(seed=1))):
        torch.manual_seed(1)
        trainer_of(tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(
            module, loader_of(), validation
        )
    assert_close(weights(with_it), weights(without))
    assert not any(m.training for m in with_it.distiller.teacher.modules())


@pytest.mark.parametrize("recipe", [RECIPE, projecting()], ids=lambda r: r.name)
def test_a_checkpoint_is_the_distillers_own_and_resumes(tmp_path, recipe):
    adam = {"optimizer": functools.partial(torch.optim.AdamW, lr=1e-2)}
    straight, interrupted, resumed = (without_dropout(module_of(recipe, **adam)) for _ in range(3))
    trainer_of(tmp_path, max_epochs=4).fit(straight, loader_of())

    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer, _):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")
                trainer.should_stop = True

    trainer_of(tmp_path, max_epochs=4, callbacks=[Stop()]).fit(interrupted, loader_of())
    state = torch.load(tmp_path / "half.ckpt", weights_only=False)["state_dict"]
    assert state.keys() == interrupted.distiller.state_dict().keys()
    assert any(name.startswith("objective.") for name in state) == (recipe.name == "projected")
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.add_(1.0)
    trainer_of(tmp_path, max_epochs=4).fit(resumed, loader_of(), ckpt_path=tmp_path / "half.ckpt")
    assert_close(weights(resumed), weights(straight))
    fresh = module_of(recipe).distiller
    fresh.load_state_dict(state)
    assert_close(dict(fresh.state_dict()), weights(interrupted))
    loaded = DistillationModule.load_from_checkpoint(
        tmp_path / "half.ckpt", weights_only=False, distiller=module_of(recipe).distiller
    )
    assert_close(weights(loaded), weights(interrupted))


def test_what_an_aligner_learns_is_trained(tmp_path):
    module = module_of(projecting())
    before = {name: x for name, x in weights(module).items() if name.startswith("objective.")}
    trainer_of(tmp_path).fit(module, loader_of())
    assert before
    assert not any(torch.equal(x, weights(module)[name]) for name, x in before.items())


def test_averages_share_the_teacher_and_save_the_distillers_keys(tmp_path):
    class Averaging(WeightAveraging):
        def __init__(self):
            super().__init__(avg_fn=get_ema_avg_fn(0.5))

    module, by = without_dropout(module_of()), without_dropout(module_of())
    averaging = Averaging()
    average = copy.deepcopy(by.distiller)
    optimizer = SGD(by.distiller.parameters())
    for i, batch in enumerate(loader_of()):
        by.distiller(batch, progress=i / 4).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pairs = zip(average.parameters(), by.distiller.parameters(), strict=True)
        for mean, new in pairs:
            mean.data.copy_(new.data if i == 0 else 0.5 * mean.data + 0.5 * new.data)
    trainer = trainer_of(tmp_path, callbacks=[averaging])
    trainer.fit(module, loader_of(), loader_of(seed=1))
    assert averaging._average_model.module.distiller.teacher is module.distiller.teacher
    assert averaging._average_model.module.student is not module.student
    assert_close(weights(module), dict(average.state_dict()))
    trainer.save_checkpoint(tmp_path / "average.ckpt")
    saved = torch.load(tmp_path / "average.ckpt", weights_only=False)
    assert saved["state_dict"].keys() == module.distiller.state_dict().keys()


def test_the_teacher_moves_with_the_module(monkeypatch):
    module, moved = module_of(), []
    monkeypatch.setattr(module.distiller, "_apply", lambda function, *_: moved.append(function))
    module.to("cpu")
    assert len(moved) == 1
    module = module_of().double()
    assert {p.dtype for p in module.distiller.teacher.parameters()} == {torch.float32}


def test_what_is_given_twice_or_not_at_all_is_refused():
    with pytest.raises(OptionError, match="a student, a teacher and a recipe, or a distiller"):
        DistillationModule(Dual())
    with pytest.raises(OptionError, match="brings its own"):
        DistillationModule(Dual(), distiller=module_of().distiller)


@pytest.mark.parametrize(
    "changes", [{"precision": "bf16-mixed"}, {"gradient_clip_val": 0.01}], ids=str
)
def test_precision_and_clipping_are_lightnings(tmp_path, changes):
    module, by = without_dropout(module_of()), without_dropout(module_of())
    trainer_of(tmp_path, **changes).fit(module, loader_of())
    optimizer = SGD(by.distiller.parameters())
    for i, batch in enumerate(loader_of()):
        with torch.autocast("cpu", torch.bfloat16, enabled="precision" in changes):
            loss = by.distiller(batch, progress=i / 4).loss
        loss.backward()
        if "gradient_clip_val" in changes:
            assert torch.nn.utils.clip_grad_norm_(by.distiller.parameters(), 0.01) > 0.01
        optimizer.step()
        optimizer.zero_grad()
    assert_close(weights(module), weights(by))


def test_two_ranks_are_one_process_on_the_joined_batch(tmp_path):
    command = [sys.executable, "-W", "ignore", str(HERE / "two_ranks.py"), str(tmp_path)]
    paths = os.pathsep.join(map(str, (HERE.parents[2], HERE.parent)))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "two.pt")
    module, logger = without_dropout(module_of()), Recording()
    trainer_of(tmp_path, logger=logger, log_every_n_steps=1, gradient_clip_val=0.1).fit(
        module, loader_of(count=40, size=8)
    )
    assert_close(found["weights"], weights(module), tolerance=1e-5)
    rows = [row for _, row in logger.rows if "train/loss" in row]
    assert len(rows) == len(found["rows"]) == 5
    for one, other in zip(found["rows"], rows, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
