"""The examples of decoders: a student learns, and what it writes is labelled where it wrote."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import distillkit as dk

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import on_policy
import vlm_kd

END, PAD = vlm_kd.END, vlm_kd.PAD


class Writer(torch.nn.Module):
    """Writes what it is told, and remembers the prompts; generation stops after the last end."""

    def __init__(self, written):
        super().__init__()
        self.written = torch.tensor(written)

    def generate(self, *, input_ids, **more):
        self.given = {"input_ids": input_ids, **more}
        return torch.cat([input_ids, self.written], 1)


def prompts(rows):
    ids = torch.tensor(rows)
    return {
        "input_ids": ids, "attention_mask": (ids != PAD).long(),
        "pixel_values": torch.zeros(len(ids), 1, 24, 24),
    }  # fmt: skip


@pytest.mark.parametrize("rows", [[[5, 6, 7], [8, PAD, PAD]], [[5, 6, 7], [PAD, PAD, 8]]])
@pytest.mark.parametrize("filler", [PAD, END])
def test_labels_are_what_was_written(rows, filler):
    model = Writer([[9, 10, END], [END, filler, filler]]).train()
    batch = on_policy.written_by(model, prompts(rows), end=END, longest=3)
    assert model.training
    assert batch["input_ids"].tolist() == [
        [5, 6, 7, 9, 10, END],
        [PAD, PAD, 8, END, filler, filler],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100] * 3 + [9, 10, END], [-100] * 3 + [END, -100, -100]]


def test_a_response_that_does_not_end_is_labelled_to_its_last_token():
    batch = on_policy.written_by(Writer([[9, 10]]), prompts([[5, 6]]), end=END, longest=2)
    assert batch["labels"].tolist() == [[-100, -100, 9, 10]]


def test_a_real_model_is_scored_where_it_wrote():
    """The student's logits at the places of `logits.response` made the tokens it wrote."""
    torch.manual_seed(0)
    student, teacher = vlm_kd.llava(vlm_kd.STUDENT), vlm_kd.llava(vlm_kd.TEACHER)
    asked = on_policy.prompts_of(vlm_kd.Scenes(0, 50, seed=0), 8)
    lengths = asked["attention_mask"].sum(1)
    assert len(lengths.unique()) == 2  # some prompts are padded
    with torch.no_grad():
        student.lm_head.weight.mul_(1e4)  # sampling picks the likeliest token
    batch = on_policy.written_by(student, asked, end=END, longest=4)
    distiller = dk.Distiller(student.eval(), teacher, "on_policy")
    assert distiller.check(batch).passed
    result = distiller(batch)
    logits = result.student["logits.response"].detach().clone()
    logits[..., vlm_kd.IMAGE] = -torch.inf  # which is never written
    likeliest = logits.argmax(-1)
    for row, labels in zip(likeliest, batch["labels"], strict=True):
        written = labels[labels != -100]
        assert row[: len(written)].tolist() == written.tolist()


def test_a_student_learns_from_what_it_writes():
    found = on_policy.run(teacher_steps=60, steps=10, rounds=25)
    assert sum(found.losses[-5:]) < 0.8 * sum(found.losses[:5])


def test_the_table_has_every_way_to_train(monkeypatch, capsys):
    options = ["--teacher-steps", "90", "--steps", "2", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["vlm_kd.py", *options])
    vlm_kd.main()
    rows = re.findall(r"^(\w+) +([\d.]+) %  \((.*)\)$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["teacher", "alone", "vlm_response", "vlm_kd"]
    for _, mean, each in rows:
        found = [float(one) for one in each.split(", ")]
        assert float(mean) == pytest.approx(sum(found) / len(found), abs=0.11)
    assert float(rows[0][1]) > 14  # chance is 10; what two steps taught is nothing


def test_the_student_falls_towards_its_teacher():
    torch.manual_seed(0)
    teacher = vlm_kd.train_teacher(40)
    scenes = vlm_kd.Scenes(vlm_kd.TEST_SCANS, vlm_kd.STUDENT_SCANS, seed=5)
    batch = scenes.batch(64)
    values = []
    for steps in (1, 40):
        student = vlm_kd.train_student(teacher, "vlm_kd", steps=steps, seed=0)
        with torch.no_grad():
            distiller = dk.Distiller(student.eval(), teacher, "vlm_kd")
            values.append({name: v.item() for name, v in distiller(batch).parts.items()})
    assert all(values[1][name] < before for name, before in values[0].items())


def test_splits_share_no_scan():
    assert vlm_kd.TEST_SCANS + vlm_kd.TEACHER_SCANS <= 1797
    assert vlm_kd.STUDENT_SCANS < vlm_kd.TEACHER_SCANS
    test, _ = vlm_kd.scans(0, vlm_kd.TEST_SCANS)
    train, _ = vlm_kd.scans(vlm_kd.TEST_SCANS, vlm_kd.TEACHER_SCANS)
    assert not {tuple(x.flatten().tolist()) for x in test} & {
        tuple(x.flatten().tolist()) for x in train
    }
