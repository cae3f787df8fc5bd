"""The study can be killed and goes on to the same results, and its documents say what it found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support.scripts import load_scripts

DIDE = load_scripts("dide")
data = DIDE.data
models = DIDE.models
reproduce = DIDE.reproduce
results = DIDE.results
study_plan = DIDE.study_plan
training = DIDE.training

ROOT = Path(__file__).parents[2]
STUDY = """
scenes = { train = 160, val = 70, test = 70, unlabelled = 80 }
read_every = 10

[throughput]
depths = [1]
scenes = [1, 2]
questions = [1, 4]
repeats = 1

[[teachers]]
name = "teacher"
steps = 20
seeds = [0]
"""
STUDENT = """
[[students]]
name = "{name}"
part = "{part}"
recipe = "{recipe}"
steps = [{steps}]
seeds = [0]
{more}
"""
EVERYTHING = "student_adapter = 'student_all.toml'\nteacher_adapter = 'teacher_all.toml'"


def student(name, part, recipe="../dide.toml", steps=20, more=""):
    return STUDENT.format(name=name, part=part, recipe=recipe, steps=steps, more=more)


SMALL = STUDY + "".join([
    student("alone", "comparison", "../alone.toml"),
    student("soft labels", "comparison", "../soft.toml"),
    student("DiDE", "comparison"),
    student("longer", "equal time", "../soft.toml", steps=30),
    student("both layers", "ablation", "all_layers.toml", more=EVERYTHING),
    student("whole", "ablation", "whole.toml", more="whole = true"),
    student("other maps", "control", more="maps = 'of another scene'"),
    student("more scenes", "search", more="pretraining = 0.5"),
    student("from the teacher", "search", more="start = 'teacher'"),
    student("best", "final", "dide_half.toml", more="title = 'the best'"),
    student("the same", "final"),
])  # fmt: skip


def started(study, out, *more):
    command = [sys.executable, str(ROOT / "examples/dide/reproduce.py"), "--study", str(study),
               "--out", str(out), "--workers", "1", *more]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finished(process):
    printed, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    return printed


def killed_at(condition, process):
    """SIGKILL for the command and its workers, as soon as something is there."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def without_times(lines):
    kept = ("run", "digest", "test", "validation")
    readings = {
        line["run"]: [(step, values) for step, _, values in line.get("readings", [])]
        for line in lines
    }
    return {line["run"]: [line.get(k) for k in kept] + readings[line["run"]] for line in lines}


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY + student("DiDE", "comparison", steps=120), encoding="utf-8")
    return path


def test_a_killed_study_goes_on_to_the_same_results(tmp_path, study_file):
    straight, out = tmp_path / "straight", tmp_path / "killed"
    runs = list(study_plan.load_study(study_file).runs())
    finished(started(study_file, straight, "--seeds", "0"))
    checkpoints = out / "checkpoints"
    _, second = (checkpoints / f"{run.digest}.pt" for run in runs)
    killed_at(second.exists, started(study_file, out))
    with (out / "results.jsonl").open("a") as file:
        file.write('{"run": "half a li')
    kept = torch.load(second, weights_only=True)
    assert 10 <= kept["done"][0] <= 120
    printed = finished(started(study_file, out, "--seeds", "0"))
    assert "1 of 2 models are there, 1 to go" in printed
    assert not list(checkpoints.iterdir())
    one, other = (reproduce.read_lines(folder / "results.jsonl") for folder in (straight, out))
    assert without_times(one) == without_times(other)
    for path in (straight / "weights").iterdir():
        weights, again = (torch.load(f / "weights" / path.name) for f in (straight, out))
        assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert reproduce.left_of(runs, other, out) == ([], [])


def documents_in(root):
    """A documentation that has a place for every table."""
    for name in results.DOCUMENTS:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = [f"<!-- begin {name} -->\n<!-- end {name} -->" for name in results.BLOCKS]
        path.write_text("\n\n".join(["before", *blocks, "after"]), encoding="utf-8")
    (root / "docs/images").mkdir(parents=True)
    return root


def test_the_whole_of_a_small_study(tmp_path):
    path, out = tmp_path / "study.toml", tmp_path / "out"
    path.write_text(SMALL, encoding="utf-8")
    root = documents_in(tmp_path / "root")
    printed = finished(started(path, out, "--docs", str(root)))
    assert "0 of 11 models are there, 11 to go" in printed
    lines = {line["run"]: line for line in reproduce.read_lines(root / "docs/results.jsonl")}
    assert len(lines) == 12
    assert "test" not in lines["more scenes/20/0"]
    assert "the same/20/0" not in lines  # but one that DiDE's line tells of
    assert lines["DiDE/20/0"]["test"].keys() == {"all", *data.KINDS}
    assert [reading[0] for reading in lines["DiDE/20/0"]["readings"]] == [10, 20]
    text = (root / "docs/results.md").read_text(encoding="utf-8")
    assert text.startswith("before")
    assert text.endswith("after")
    blocks = {
        name: text.partition(f"<!-- begin {name} -->")[2].partition("<!-- end")[0].strip()
        for name in results.BLOCKS
    }
    assert [name for name, block in blocks.items() if not block] == []
    assert reproduce.processor() in blocks["study_machine"]  # as long as its maker called it
    shown = f"{100 * lines['best/20/0']['test']['all']:.1f}"
    assert f"| the best | {shown} |" in text
    for picture in ("learning", "attention-kl", "throughput", "attention"):
        content = (root / f"docs/images/study-{picture}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 20_000


def test_what_lacks_runs_is_not_published(tmp_path, study_file):
    (tmp_path / "results.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks 3 runs, the first is 'teacher/20/0'"):
        results.read_results(tmp_path / "results.jsonl", study_plan.load_study(study_file))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('teacher = "techer"', "learns from 'techer'"),
        ("start = 'teachers'", "start"),
        ("learnin_rate = 1.0", "learnin_rate"),
    ],
)
def test_a_study_with_a_mistake_is_refused(tmp_path, line, complaint):
    path = tmp_path / "study.toml"
    path.write_text(STUDY + student("DiDE", "comparison", more=line), encoding="utf-8")
    with pytest.raises(SystemExit, match=complaint):
        study_plan.load_study(path)


def test_equal_settings_have_equal_digests(study_file):
    study = study_plan.load_study(study_file)
    teacher, run = study.runs()
    assert study.teacher_of(run) == teacher
    renamed = study_file.read_text(encoding="utf-8").replace(
        'name = "DiDE"', 'name = "it"\nnote = "other"'
    )
    study_file.write_text(renamed, encoding="utf-8")
    assert list(study_plan.load_study(study_file).runs())[1].digest == run.digest
    study_file.write_text(renamed.replace("steps = 20\n", "steps = 21\n"), encoding="utf-8")
    other = list(study_plan.load_study(study_file).runs())
    assert other[0].digest != teacher.digest
    assert other[1].digest != run.digest  # another teacher


def test_maps_of_another_scene_keep_the_question():
    pairs = data.load("val", 60)
    other = reproduce.of_another_scene(pairs)
    assert torch.equal(other.sort().values, torch.arange(len(other)))
    assert torch.equal(pairs.question[other], pairs.question)
    assert (pairs.scene[other] != pairs.scene).all()


def test_a_student_can_start_as_its_teacher():
    teacher, student = models.FusionEncoder(), models.DualEncoder()
    reproduce.start_from(student, teacher)
    for tower in (student.text, student.image):
        for name, weight in teacher.encoder.state_dict().items():
            assert torch.equal(tower.encoder.state_dict()[name], weight)
    assert torch.equal(student.classifier[0].weight, teacher.classifier[0].weight)


def test_the_whole_attention_is_one_softmax_over_both_towers():
    pairs = data.load("val", 4)
    teacher, student = models.FusionEncoder(), models.DualEncoder()
    settings = study_plan.Student(
        name="", part="ablation", recipe="whole.toml", steps=(1,), seeds=(0,), whole=True
    )
    distiller = reproduce._distiller(student, teacher, settings)
    batch = training.batch_of(pairs, torch.arange(9))
    del batch["answer"]
    towers = distiller(batch).student
    found = towers["attention.joint"][0]
    assert found.shape == (9, models.HEADS, data.LENGTH + 10, data.LENGTH + 10)
    probabilities = found.probabilities()
    padded = ~pairs.question_mask[pairs.question[:9]]
    assert (
        probabilities[..., : data.LENGTH][padded[:, None, None].expand(-1, 4, 18, -1)].eq(0).all()
    )
    of_text = towers["attention.text"][0].take(batch["compared_question"]).scores()
    torch.testing.assert_close(found.scores()[:, :, :8, :8], of_text)


def test_documents_show_the_committed_results():
    study = study_plan.load_study(study_plan.STUDY / "study.toml")
    found = results.read_results(ROOT / "docs/results.jsonl", study)
    for name in results.DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "<!-- begin study_" in text
        assert results.written(text, found) == text, "run make reproduce"
    for line in (ROOT / "docs/results.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["run"]
