"""The demo's data is what it says, its models pair rightly, and the whole of it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.scripts import load_scripts

DIDE = load_scripts("dide")
data = DIDE.data
models = DIDE.models

ROOT = Path(__file__).parents[2]


def seen_in(cells, cell):
    """The colour that a cell shows, by its brightest pixel; None if it is black."""
    pixels = cells[cell].reshape(-1, 3)
    brightest = pixels[pixels.sum(-1).argmax()]
    if brightest.sum() == 0:
        return None
    shown = brightest / brightest.max()
    distance = {
        name: np.abs(shown.numpy() - np.array(color) / max(color)).sum()
        for name, color in data.COLORS.items()
    }
    return min(distance, key=distance.get)


def test_scans_of_the_splits_are_disjoint():
    scans = {
        split: {s.tobytes() for s in data.split_scans(split)[0]}
        for split in ("train", "val", "test")
    }
    assert [len(data.split_scans(split)[0]) for split in scans] == [1000, 300, 497]
    assert (
        not scans["train"] & scans["val"]
        | scans["train"] & scans["test"]
        | scans["val"] & scans["test"]
    )


def test_every_clean_answer_is_right():
    pairs = data.load("test", 60)
    scans, digits = data.split_scans("test")
    for scene in range(60):
        cells = pairs.scenes[scene]
        shown = {}
        for cell in range(data.CELLS):
            if (color := seen_in(cells, cell)) is not None:
                gray = cells[cell].reshape(8, 8, 3).numpy() / np.array(
                    data.COLORS[color], np.float32
                )
                match = np.abs(scans - gray.mean(-1)).sum((1, 2)).argmin()
                shown[data.DIGITS[digits[match]]] = (cell, color)
        assert 2 <= len(shown) <= 5
        for pair in torch.nonzero(pairs.scene == scene)[:, 0]:
            question = data.QUESTIONS[pairs.question[pair]]
            cell, color = shown[question.split()[-1]]
            answers = {
                "color": color,
                "row": f"{data.ROWS[cell // 3]} row",
                "column": f"{data.COLUMNS[cell % 3]} column",
            }
            kind = data.KINDS[pairs.kind[pair]]
            assert kind in question
            assert data.ANSWERS[pairs.answer[pair]] == answers[kind]


def test_label_noise_is_in_training_alone_and_keeps_the_kind():
    noisy = data.load("train", 1000)
    assert torch.equal(noisy.answer, data.load("train", 1000).answer)
    unseen = data.load("val", 50)
    assert len(unseen.answer) == 50 * data.QUESTIONS_PER_SCENE
    again = data.with_noisy_answers(unseen)
    changed = (again.answer != unseen.answer).float().mean().item()
    assert 0.08 < changed < 0.2  # of 20 % redrawn, about a third hit the same answer
    kind_of = torch.tensor([0] * 4 + [1] * 3 + [2] * 3)
    assert torch.equal(kind_of[again.answer], unseen.kind)
    assert torch.equal(kind_of[noisy.answer], noisy.kind)


def test_questions_and_masks():
    pairs = data.load("val", 1)
    assert pairs.questions.shape == (36, data.LENGTH)
    assert len(pairs.questions.unique(dim=0)) == 36
    for ids, mask, question in zip(
        pairs.questions, pairs.question_mask, data.QUESTIONS, strict=True
    ):
        words = [data.VOCABULARY[i] for i in ids[mask]]
        assert words == ["[CLS]", *question.split(), "[SEP]"]


@pytest.mark.parametrize("model_class", [models.FusionEncoder, models.DualEncoder])
def test_a_pair_is_answered_alike_alone_and_in_a_batch(model_class):
    model = model_class().eval()
    pairs = data.load("val", 3)
    question, scene = torch.tensor([0, 35, 17, 5]), torch.tensor([2, 0, 0, 1])
    with torch.no_grad():
        together = model(pairs.questions, pairs.question_mask, pairs.scenes, question, scene).logits
        for i, (q, s) in enumerate(zip(question, scene, strict=True)):
            zero = torch.zeros(1, dtype=torch.long)
            alone = model(
                pairs.questions[q][None],
                pairs.question_mask[q][None],
                pairs.scenes[s][None],
                zero,
                zero,
            )
            torch.testing.assert_close(alone.logits[0], together[i], rtol=1e-4, atol=1e-5)
        padding = pairs.questions.masked_fill(~pairs.question_mask, 7)
        other = model(padding, pairs.question_mask, pairs.scenes, question, scene).logits
        torch.testing.assert_close(other, together, rtol=1e-4, atol=1e-5)


def test_the_demo_runs_from_end_to_end(tmp_path):
    command = [sys.executable, "examples/dide/train.py", "--steps", "12", "--train-scenes", "80",
               "--test-scenes", "12", "--timed-scenes", "2", "--threads", "1", "--out", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Test accuracy" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(results["test_accuracy"]) == ["teacher", "alone", "soft labels", "DiDE"]
    assert set(results["test_accuracy"]["DiDE"]) == {"all", *data.KINDS}
    assert len(results["validation_accuracy"]["DiDE"]) == 12
    assert len(results["inference"]["seconds"]) == 4
    for name in ("learning_curves.png", "attention.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / name).stat().st_size > 20_000
    page = (tmp_path / "attention.html").read_text(encoding="utf-8")
    assert '"checkpoints":["alone","soft labels","DiDE"]' in page
