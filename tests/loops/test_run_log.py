"""The logs of Trainer's, Lightning's and accelerate's trainings, and the page of all three."""

from __future__ import annotations

import functools
import os
from typing import ClassVar

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("accelerate")

from distillkit_transformers import DistillationTrainer
from torch.utils.data import DataLoader

import distillkit as dk
from distillkit.__main__ import main
from distillkit._report.findings import findings
from distillkit._report.reading import read_run
from tests.support import runs
from tests.support.runs import TO_IMAGE, TO_TEXT, lines
from tests.support.shown import facts_of
from tests.support.small_trainings import arguments

pytestmark = pytest.mark.filterwarnings("ignore")


def trainer_of(folder, log, *, steps=6, **changes):
    torch.manual_seed(3)
    return DistillationTrainer(
        *runs.pair(), runs.recipe(), train_dataset=runs.examples(16), run_log=log,
        eval_dataset=runs.examples(4), evaluate_distillation=True,
        args=arguments(folder, max_steps=steps, **changes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    log = dk.RunLog(folder / "run", watch=runs.watch())
    trainer = trainer_of(
        folder, log, eval_strategy="steps", eval_steps=3, gradient_accumulation_steps=2
    )
    trainer.train()
    log.close()
    return folder / "run", trainer


def test_trainer_writes_what_it_logs(trained):
    folder, trainer = trained
    rows = {row.line.step: row.line for row in read_run(folder).rows}
    logs = [one for one in trainer.state.log_history if "loss" in one]
    assert list(rows) == [one["step"] for one in logs] == list(range(1, 7))
    for one in logs:
        line = rows[one["step"]]
        assert line.loss == pytest.approx(one["loss"], abs=1e-4)
        for name in (TO_IMAGE, TO_TEXT):
            assert line.weights[name] == pytest.approx(one[f"weight/{name}"])
            if line.weights[name]:
                assert line.parts[name] == pytest.approx(one[name], rel=1e-6)
        assert line.values["learning_rate"] == pytest.approx(one["learning_rate"], rel=1e-6)
    assert rows[6].values[f"eval_{TO_TEXT}"] > 0
    assert not [name for name in rows[6].values if name.endswith("_runtime")]


def test_trainers_own_loggers_get_the_readings_under_the_same_names(trained):
    folder, trainer = trained
    looks = lines(folder, "look")
    assert [one["step"] for one in looks] == [1, 5]
    logged = {one["step"]: one for one in trainer.state.log_history if f"own/{TO_IMAGE}" in one}
    for look in looks:
        for side in ("own", "wrong"):
            for name, value in look[side].items():
                assert logged[look["step"]][f"{side}/{name}"] == pytest.approx(value, rel=1e-6)


def test_trainers_log_begins_with_the_first_batch_and_ends(trained):
    run = read_run(trained[0])
    (begin,) = run.begins
    assert [row.term for row in begin.facts.compared] == [TO_IMAGE, TO_TEXT]
    assert begin.facts.recipe.name == "dide_attention"
    assert run.ended is not None
    assert not [one for one in findings(run) if one.kind == "problem"]


def test_a_nan_that_trainer_hides_is_in_the_log(tmp_path):
    trainer = trainer_of(tmp_path, tmp_path / "run", steps=2)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.fill_(float("nan"))
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0.0  # as Trainer has it
    run = read_run(tmp_path / "run")
    assert run.rows[0].line.nonfinite["loss"] == "nan"
    assert any("loss was NaN at 2 logged steps" in one.text for one in findings(run))


def test_a_resumed_trainer_goes_on_with_its_log(tmp_path):
    trainer_of(tmp_path, tmp_path / "run", steps=4, save_strategy="steps", save_steps=2).train()
    again = trainer_of(tmp_path, tmp_path / "run", steps=6)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    run = read_run(tmp_path / "run")
    assert [row.line.step for row in run.rows] == [1, 2, 3, 4, 5, 6]
    assert len(run.begins) == 2
    assert any("from 3 to 4, were trained again" in note for note in run.notes)


def test_an_evaluation_before_any_training_begins_the_log(tmp_path):
    trainer = trainer_of(tmp_path, tmp_path / "run", steps=1)
    trainer.evaluate()
    trainer.train()
    rows = read_run(tmp_path / "run").rows
    assert [row.line.step for row in rows] == [0, 1]
    assert rows[0].line.loss is None


# ------------------------------------------------------------------------------------ lightning


def test_lightning_writes_what_it_logs_and_one_page_shows_both(tmp_path, trained):
    pytest.importorskip("lightning")
    from distillkit_lightning import DistillationModule

    from tests.loops.lightning_trainings import Recording, trainer_of

    log = dk.RunLog(tmp_path / "lightning", watch=runs.watch(every=2))
    module = DistillationModule(
        *runs.pair(), runs.recipe(), run_log=log, evaluate_distillation=True,
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3),
    )  # fmt: skip
    logger = Recording()
    trainer = trainer_of(
        tmp_path, logger=logger, log_every_n_steps=1, max_epochs=2, enable_checkpointing=False
    )
    loader = DataLoader(runs.examples(12), batch_size=4)
    trainer.fit(module, loader, DataLoader(runs.examples(4), batch_size=4))
    log.close()
    run = read_run(tmp_path / "lightning")
    assert [row.line.step for row in run.rows] == [1, 2, 3, 4, 5, 6]
    logged = [row for _, row in logger.rows if "train/loss" in row]
    for row, values in zip(run.rows, logged, strict=True):
        assert row.line.loss == pytest.approx(values["train/loss"], rel=1e-5)
        for name, value in row.line.parts.items():
            assert value == pytest.approx(values[f"train/{name}"], rel=1e-5)
        assert row.line.values["learning_rate"] == 1e-3
    assert run.rows[2].line.values[f"val/{TO_TEXT}"] > 0
    assert [one.line.step for one in run.looks] == [1, 3, 5]
    read = [row for _, row in logger.rows if f"train/own/{TO_IMAGE}" in row]
    steps = {id(row): step for step, row in logger.rows}
    assert [steps[id(row)] for row in read] == [steps[id(logged[i])] for i in (0, 2, 4)]
    assert [row[f"train/own/{TO_IMAGE}"] for row in read] == pytest.approx(
        [one.line.own[TO_IMAGE] for one in run.looks], rel=1e-5
    )
    assert run.ended is not None
    page = tmp_path / "page.html"
    assert main(["report", str(trained[0]), str(tmp_path / "lightning"), "-o", str(page)]) == 0
    made = facts_of(page.read_text(encoding="utf-8"))
    assert [one["label"] for one in made["runs"]] == ["run", "lightning"]


def test_a_lightning_module_with_a_log_is_copied(tmp_path):
    pytest.importorskip("lightning")
    import copy

    from distillkit_lightning import DistillationModule

    module = DistillationModule(*runs.pair(), runs.recipe(), run_log=tmp_path / "run")
    assert copy.deepcopy(module)._run_log is module._run_log


# ----------------------------------------------------------------------------------- accelerate


def test_accelerates_trackers_get_the_same_names(tmp_path):
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    class Recorder(GeneralTracker):
        name, requires_logging_directory = "recorder", False
        rows: ClassVar[list] = []

        @property
        def tracker(self):
            return self.rows

        def log(self, values, step, **_):
            self.rows.append((step, values))

    accelerator = Accelerator(cpu=True, log_with=Recorder())
    accelerator.init_trackers("tracked")
    made, meter = runs.distiller(), dk.Meter()
    with dk.RunLog(tmp_path / "run", made, watch=runs.watch(attention=False)) as log:
        meter.add(made(runs.batch(), progress=0.0))
        means = meter.means()
        readings = log.write(means, step=1)
        accelerator.log({**means, **readings}, step=1)
    ((step, values),) = Recorder.rows
    (line,), (look,) = lines(tmp_path / "run", "step"), lines(tmp_path / "run", "look")
    assert (step, values["loss"]) == (1, pytest.approx(line["loss"], rel=1e-6))
    for prefix, group in (
        ("", line["parts"]), ("weight/", line["weights"]), ("own/", look["own"]),
        ("wrong/", look["wrong"]),
    ):  # fmt: skip
        assert {n: values[prefix + n] for n in group} == pytest.approx(group, rel=1e-6)
    assert len(values) == 1 + 4 * 2
