"""The example of retrieval: its candidates, what it counts, and a short run of it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import retrieval


def pictures(seed=0):
    return retrieval.Pictures(retrieval.TEST_SCANS, retrieval.STUDENT_SCANS, seed=seed)


def test_the_first_candidate_is_the_own_caption_and_no_other_is():
    own = pictures().draw(200)[1]
    drawn = pictures().batch(200)["input_ids"][:, 1:] - retrieval.ZERO
    candidates = drawn.view(200, retrieval.CANDIDATES, retrieval.DIGITS)
    assert torch.equal(candidates[:, 0], own)
    wrong = (candidates[:, 1:] != own[:, None]).sum(-1)
    assert wrong[:, :-1].eq(1).all()
    assert wrong[:, -1].ge(1).all()
    exchanged = candidates[:, -1].sort(1).values == own.sort(1).values
    assert exchanged.all(1).float().mean() > 0.5  # the order counts, not which digits there are
    assert (drawn >= 0).all()
    assert (drawn < 10).all()


def test_student_and_teacher_read_the_same_pairs():
    batch = pictures().batch(3)
    index = batch["student_image_index"]
    assert index.tolist() == [i for i in range(3) for _ in range(retrieval.CANDIDATES)]
    assert torch.equal(batch["pixel_values"][index], batch["teacher_pixel_values"])
    assert len(batch["input_ids"]) == len(index)


def test_recall_counts_ranks_and_no_caption_that_is_the_same():
    own = torch.eye(6).bool()
    best, worst = own.float(), -own.float()
    assert retrieval.recalls(best, own) == {1: 1.0, 5: 1.0}
    assert retrieval.recalls(worst, own) == {1: 0.0, 5: 0.0}
    assert retrieval.recalls(torch.zeros(6, 6), own) == {1: 0.0, 5: 0.0}  # nothing was found
    assert retrieval.recalls(torch.zeros(6, 6), torch.ones(6, 6).bool()) == {1: 1.0, 5: 1.0}
    third = best.clone()
    third[0, 1:3] = 2.0
    assert retrieval.recalls(third, own)[1] == torch.tensor(5 / 6).item()
    assert retrieval.recalls(third, own)[5] == 1.0


def test_pictures_of_tests_are_of_scans_that_no_student_sees():
    test = retrieval.Pictures(0, retrieval.TEST_SCANS, seed=0)
    seen = {scan.numpy().tobytes() for scan in pictures().pixels}
    unseen = [scan.numpy().tobytes() not in seen for scan in test.pixels]
    assert sum(unseen) >= len(unseen) - 2  # scikit-learn's scans may repeat


def test_the_teacher_is_read_as_the_recipe_reads_it():
    torch.manual_seed(0)
    teacher, batch = retrieval.make_teacher().eval(), pictures().batch(2)
    names = ("input_ids", "attention_mask", "teacher_pixel_values", "teacher_pixel_mask")
    given = {name.removeprefix("teacher_"): batch[name] for name in names}
    signals = retrieval.dk.Backbone(teacher).signals({**given, "candidates": batch["candidates"]})
    expected = retrieval.teacher_scores(teacher, batch)
    torch.testing.assert_close(signals["scores"], expected)


def test_a_short_run_prints_every_way(capsys, monkeypatch):
    short = ["--teacher-steps", "3", "--steps", "3", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["retrieval.py", *short])
    whole = retrieval.recall
    monkeypatch.setattr(retrieval, "recall", lambda score, model: whole(score, model, size=8))
    retrieval.main()
    lines = capsys.readouterr().out.splitlines()[1:]
    names = [line.split()[0] for line in lines]
    assert names == ["teacher", "untrained", "alone", "dide_retrieval"]
    assert all(0 <= float(line.split()[i]) <= 100 for line in lines for i in (1, 3))
