"""The log of a run: one line a step, whatever happens to the program that writes it."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import distillkit as dk
from distillkit import losses
from distillkit._report.partners import Side, partners
from distillkit._report.reading import read_run
from distillkit.errors import DistillKitError, LogError, OptionError
from tests.distributed.two_processes import ROOT, run_in_two_processes
from tests.support import runs
from tests.support.runs import TO_IMAGE, TO_TEXT, lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training with a watch: its folder, and what every step returned."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    made = runs.distiller()
    with dk.RunLog(folder, made, watch=runs.watch()) as log:
        results = runs.train(log, made, 12)
    return folder, results, made


def test_each_step_is_a_line_with_every_part_and_weight(trained):
    folder, results, _ = trained
    steps = lines(folder, "step")
    assert [one["step"] for one in steps] == list(range(1, 13))
    for line, result in zip(steps, results, strict=True):
        assert line["loss"] == pytest.approx(result.loss.item(), rel=1e-6)
        assert line["weights"] == pytest.approx(result.weights)
        parts = {name: value.item() for name, value in result.parts.items()}
        assert line["parts"] == pytest.approx(parts, rel=1e-6)
    elapsed = [one["elapsed"] for one in steps]
    assert elapsed == sorted(elapsed)
    assert lines(folder)[-1]["kind"] == "end"
    assert steps[-1]["memory"]["host"] > 1e6


def test_the_beginning_says_recipe_comparison_cost_and_citation(trained):
    folder, _, made = trained
    (begin,) = lines(folder, "begin")
    facts = begin["facts"]
    assert facts["recipe"]["name"] == "dide_attention"
    assert facts["terms"][0]["weight"] == "4 to 0, linear, until 50% of training"
    assert [row["term"] for row in facts["compared"]] == [TO_IMAGE, TO_TEXT]
    assert "b=3" in facts["compared"][0]["student"]
    assert facts["student"]["parameters"] == sum(p.numel() for p in made.student.parameters())
    assert facts["teachers"][0]["trained"] == 0
    assert losses.citation("wang-etal-2022-distilled") in facts["citations"]
    assert begin["versions"]["torch"] == torch.__version__


def test_readings_are_own_and_wrong_maps_as_by_hand(trained):
    folder, *_ = trained
    assert [one["step"] for one in lines(folder, "look")] == [1, 5, 9]
    made, watch = runs.distiller(), runs.watch(attention=False, every=1)
    with dk.RunLog(folder.parent / "other", made, watch=watch) as log:
        returned = log.write({"loss": 1.0}, step=0)
    (look,) = lines(folder.parent / "other", "look")
    made.eval()
    with torch.no_grad():
        theirs = made.run_teacher(watch.batch)
        others = theirs.take(torch.tensor([2, 0, 1]))
        own = made(watch.batch, progress=0.0, teacher_signals=theirs).parts
        wrong = made(watch.batch, progress=0.0, teacher_signals=others).parts
    for side, parts in (("own", own), ("wrong", wrong)):
        exact = {name: value.item() for name, value in parts.items()}
        assert look[side] == pytest.approx(exact, rel=1e-5)
        assert {n: returned[f"{side}/{n}"] for n in exact} == pytest.approx(exact, rel=1e-5)
    assert look["own"] != pytest.approx(look["wrong"], rel=1e-3)


def test_words_of_one_length_are_read_against_each_other_alone():
    made = runs.distiller()
    batch = runs.batch(3)
    batch["attention_mask"][0, 3:] = 0
    from distillkit._report.watch import look

    seen = look(made, dk.Watch(batch=batch, attention=False))
    alike = {name: x[1:] for name, x in batch.items()}
    other = look(made, dk.Watch(batch=alike, attention=False))
    assert seen.own == pytest.approx(other.own)
    assert seen.wrong == pytest.approx(other.wrong)
    alone = look(made, dk.Watch(batch={n: x[:2] for n, x in batch.items()}, attention=False))
    assert (len(alone.own), alone.wrong) == (2, {})


def test_partners_are_of_the_signals_that_terms_compare():
    axis = dk.TokenAxis("text", torch.tensor([[True, True], [True, False], [True, True]]))
    values = {"hidden.text": torch.zeros(3, 2, 4), "logits": torch.zeros(2, 4)}
    side = dk.Signals(values, axes={"hidden.text": (axis,)})
    assert partners([Side(side, ["hidden.text"])]) == ([0, 2], [2, 0], False)
    assert partners([Side(side, ["logits"])]) == ([0, 1], [1, 0], True)
    with pytest.raises(OptionError, match="unequally many: 2, 3.*readings=False"):
        partners([Side(side, ["hidden.text", "logits"])])


def test_a_look_changes_nothing_of_the_training(trained, tmp_path):
    _, results, _ = trained
    made = runs.distiller()
    with dk.RunLog(tmp_path, made) as log:
        plain = runs.train(log, made, 12)
    for one, other in zip(plain, results, strict=True):
        assert torch.equal(one.loss, other.loss)


def test_numbers_by_name_and_what_has_a_weight_is_a_part(tmp_path):
    meter = dk.Meter()
    meter.add({"loss": torch.tensor(2.0), "a/b": 3.0, "weight/a/b": 0.5})
    with dk.RunLog(tmp_path) as log:
        log.write({**meter.means(), "learning_rate": 0.1, "count": torch.tensor(7)}, step=3)
    (line,) = lines(tmp_path, "step")
    assert (line["loss"], line["parts"], line["weights"]) == (2.0, {"a/b": 3.0}, {"a/b": 0.5})
    assert line["values"] == {"learning_rate": 0.1, "count": 7.0}


def test_what_is_not_finite_is_null_and_named(tmp_path):
    with dk.RunLog(tmp_path) as log:
        values = {"loss": torch.tensor(float("nan")), "x": float("inf"), "weight/x": 1.0}
        log.write({**values, "lr": float("-inf")}, step=1)
    text = (tmp_path / "run.jsonl").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    (line,) = lines(tmp_path, "step")
    assert (line["loss"], line["parts"], line["values"]) == (None, {"x": None}, {"lr": None})
    assert line["nonfinite"] == {"loss": "nan", "parts/x": "inf", "values/lr": "-inf"}


# ------------------------------------------------------------------------------ crash and resume

KILLED = """
import os, sys
import distillkit as dk
log = dk.RunLog(sys.argv[1])
for step in range(1, 6):
    log.write({"loss": 1.0 / step}, step=step)
os.kill(os.getpid(), 9)
"""


def test_a_killed_program_loses_nothing_that_it_wrote_and_is_gone_on_with(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, cwd=ROOT)
    assert done.returncode == -9
    with (tmp_path / "run.jsonl").open("ab") as file:
        file.write(b'{"kind":"step","step":6,"ti')  # as a full disk or a lost power leaves it
    interrupted = read_run(tmp_path)
    assert [row.line.step for row in interrupted.rows] == [1, 2, 3, 4, 5]
    assert interrupted.ended is None
    assert "line 7, is left out" in interrupted.notes[0]
    assert "stopped while it wrote it" in interrupted.notes[0]
    with dk.RunLog(tmp_path) as log:  # from a checkpoint after step 3
        for step in range(4, 9):
            log.write({"loss": 10.0 + step}, step=step)
    run = read_run(tmp_path)
    assert [row.line.step for row in run.rows] == list(range(1, 9))
    assert [row.line.loss for row in run.rows[2:5]] == [pytest.approx(1 / 3), 14.0, 15.0]
    assert run.begins[1].resumed
    assert run.ended is not None
    assert any("2 logged steps, from 4 to 5, were trained again" in note for note in run.notes)
    seconds = [row.seconds for row in run.rows]
    assert seconds == sorted(seconds)


def test_a_training_that_fails_is_not_called_over(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with dk.RunLog(tmp_path) as log:
            log.write({"loss": 1.0}, step=1)
            log.write({"loss": 1 / 0}, step=2)
    assert read_run(tmp_path).ended is None
    with dk.RunLog(tmp_path) as log:  # and the folder is free
        log.write({"loss": 0.5}, step=2)


def test_a_training_that_starts_anew_replaces_the_one_before(tmp_path):
    with dk.RunLog(tmp_path) as log:
        for step in (1, 2, 3, 1, 2):
            log.write({"loss": float(step)}, step=step)
    run = read_run(tmp_path)
    assert [row.line.step for row in run.rows] == [1, 2]
    assert len(run.begins) == 2


def test_attention_goes_on_and_repeats_nothing(trained, tmp_path):
    made, watch = runs.distiller(), runs.watch(readings=False)
    with dk.RunLog(tmp_path, made, watch=watch) as log:
        runs.train(log, made, 5)
    with dk.RunLog(tmp_path, made, watch=watch) as log:
        runs.train(log, made, 5, start=5)
    snapshots = lines(tmp_path, file="attention.jsonl")
    assert [one["step"] for one in snapshots] == [1, 5, 6, 10]
    sizes = [len(json.dumps(one)) for one in snapshots]
    assert max(sizes[1:]) < 0.7 * sizes[0]  # neither images nor the teacher's maps again
    run = read_run(tmp_path)
    assert run.attention.facts["checkpoints"] == ["step 1", "step 5", "step 6", "step 10"]


def test_a_look_that_was_not_written_is_not_referred_to(tmp_path):
    made = runs.distiller()
    (tmp_path / "attention.jsonl").mkdir(parents=True)
    with dk.RunLog(tmp_path, made, watch=runs.watch(readings=False)) as log:
        with pytest.raises(LogError, match="attention.jsonl"):
            runs.train(log, made, 1)
        (tmp_path / "attention.jsonl").rmdir()
        runs.train(log, made, 5)
    run = read_run(tmp_path)
    assert run.notes == []
    assert run.attention.facts["checkpoints"] == ["step 1", "step 5"]


# ------------------------------------------------------------------------------- who may write


def test_a_second_writer_is_refused(tmp_path):
    one, other = dk.RunLog(tmp_path), dk.RunLog(tmp_path)
    one.write({"loss": 1.0}, step=1)
    with pytest.raises(LogError, match="another process, or another RunLog"):
        other.write({"loss": 2.0}, step=1)
    one.close()
    other.write({"loss": 2.0}, step=2)
    other.close()
    assert [row.line.loss for row in read_run(tmp_path).rows] == [1.0, 2.0]


def test_two_processes_write_one_log(tmp_path):
    saved = run_in_two_processes("log_run", tmp_path)
    assert [one["files"] for one in saved] == [True, False]
    assert saved[0]["readings"] == saved[1]["readings"]
    run = read_run(tmp_path / "run")
    assert [row.line.step for row in run.rows] == [1, 2]
    assert run.begins[0].ranks == 2
    mean = sum(one["losses"][0] for one in saved) / 2
    assert run.rows[0].line.loss == pytest.approx(mean, rel=1e-6)


def test_a_copy_writes_the_same_log_and_a_pickle_begins_its_own(tmp_path):
    log = dk.RunLog(tmp_path)
    log.write({"loss": 1.0}, step=1)
    assert copy.deepcopy({"log": log})["log"] is log
    again = pickle.loads(pickle.dumps(log))
    assert again.folder == tmp_path
    log.close()
    with again:
        again.write({"loss": 2.0}, step=2)
    assert len(read_run(tmp_path).rows) == 2


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("values", "step", "message"),
    [
        ({"loss": "high"}, 1, "'loss' is no number.*got 'high'"),
        ({"x": torch.ones(2)}, 1, r"got a tensor \(2,\)"),
        ({"x": True}, 1, "'x' is no number"),
        ([1.0], 1, "got list"),
        ({"loss": 1.0}, 1.5, "got 1.5"),
        ({"loss": 1.0}, -1, "got -1"),
        ({"loss": 1.0}, True, "got True"),
    ],
)
def test_what_cannot_be_logged_is_said_and_nothing_is_written(tmp_path, values, step, message):
    with dk.RunLog(tmp_path / "run") as log, pytest.raises(OptionError, match=message):
        log.write(values, step=step)
    assert not (tmp_path / "run").exists()


def test_a_log_that_is_closed_or_of_another_distiller_is_an_error(tmp_path):
    log = dk.RunLog(tmp_path)
    log.write({"loss": 1.0}, step=1)
    with pytest.raises(OptionError, match="has begun without a distiller"):
        log.begin(runs.distiller())
    log.close()
    with pytest.raises(LogError, match="is closed"):
        log.write({"loss": 1.0}, step=2)
    with pytest.raises(OptionError, match="a watch looks at a distiller"):
        dk.RunLog(tmp_path, watch=runs.watch()).write({"loss": 1.0}, step=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"kind":"begin","format":2}\n', "of format 2"), ("step,loss\n1,2\n", "is no run log")],
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path, text, message):
    (tmp_path / "run.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(LogError, match=message):
        dk.RunLog(tmp_path).write({"loss": 1.0}, step=1)
    assert (tmp_path / "run.jsonl").read_text(encoding="utf-8") == text


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(LogError, match="cannot be written"):
        dk.RunLog(tmp_path / "file" / "run").write({"loss": 1.0}, step=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "every= is a number of steps"),
        ({"every": 1.5}, "got 1.5"),
        ({"readings": False, "attention": False}, "nothing to look at"),
        ({"batch": runs.batch(1), "words": None}, "the batch has 1"),
        ({"words": "a dog"}, "words= is a tokenizer"),
        ({"images": None, "denormalise": (0.5, 0.5)}, "denormalise= is about images="),
        ({"layers": "lsat"}, "lsat"),
        ({"batch": [1]}, "batch"),
    ],
)
def test_a_watch_says_what_it_cannot_do(changes, message):
    with pytest.raises(DistillKitError, match=message):
        runs.watch(**changes)


def test_a_watch_of_models_without_attention_says_so(tmp_path):
    adapter = dk.DeclarativeAdapter(streams={}, logits="logits", inputs={"input": "input"})

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

        def forward(self, input):
            return {"logits": self.head(input)}

    soft = dk.Recipe(name="soft", terms=[{"loss": "kl_divergence", "on": "logits"}])
    made = dk.Distiller(Head(), Head(), soft, student_adapter=adapter, teacher_adapter=adapter)
    log = dk.RunLog(tmp_path, made, watch=dk.Watch(batch={"input": torch.randn(4, 3)}))
    with pytest.raises(DistillKitError, match="no attention"):
        log.write({"loss": 1.0}, step=1)
    log.close()
    watch = dk.Watch(batch={"input": torch.randn(4, 3)}, attention=False)
    with dk.RunLog(tmp_path / "other", made, watch=watch) as log:
        assert len(log.write({"loss": 1.0}, step=1)) == 2
    assert not Path(tmp_path, "other", "attention.jsonl").exists()
