"""The example of dual encoders: what it counts, and a short run of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import clip_kd


class Scored(torch.nn.Module):
    """Returns given scores of each picture with each caption."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, **batch):
        return SimpleNamespace(logits_per_image=self.scores(batch))


def test_a_caption_that_repeats_is_not_wrong():
    def scores(batch):
        words = batch["input_ids"]
        return (words[:, None] == words).all(-1).float()  # equal captions score alike

    assert clip_kd.recall(Scored(scores)) == 1.0
    assert clip_kd.recall(Scored(lambda batch: -scores(batch))) == 0.0


def test_pictures_of_tests_are_of_scans_that_no_training_sees():
    test = clip_kd.Pairs(0, clip_kd.TEST_SCANS, seed=0)
    student = clip_kd.Pairs(clip_kd.TEST_SCANS, clip_kd.STUDENT_SCANS, seed=0)
    assert len(test.digits) == clip_kd.TEST_SCANS
    seen = {scan.numpy().tobytes() for scan in student.pixels}
    unseen = [scan.numpy().tobytes() not in seen for scan in test.pixels]
    assert sum(unseen) >= len(unseen) - 2  # scikit-learn's scans may repeat


def test_a_short_run_prints_every_way(capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["clip_kd.py", "--teacher-steps", "3", "--steps", "3", "--seeds", "1"]
    )
    clip_kd.main()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["teacher", "alone", "clip_kd"]
    assert all(0 <= float(line.split()[1]) <= 100 for line in lines)
