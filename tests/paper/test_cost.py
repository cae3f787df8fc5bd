"""The costs on the page are what the script counts, and it counts what torch counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import run
import torch
from dide_paper import cost
from dide_paper.tasks import TASKS, TEXT_LENGTH
from distillkit_transformers import ViltDualEncoder, ViltDualEncoderConfig
from torch.utils.flop_counter import FlopCounterMode

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "repeat-the-paper.md"


def test_the_page_holds_the_table():
    assert cost.table() in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("task", ["ve", "nlvr2"])
def test_operations_are_those_that_torch_counts(task):
    """Heads and fusion are left out: less than a thousandth."""
    pixels = torch.zeros(1, *(() if task == "ve" else (2,)), 3, 12 * 32, 16 * 32, device="meta")
    with torch.device("meta"):
        student = ViltDualEncoder(ViltDualEncoderConfig(task=task)).eval()
    counted = 0
    for tower in ("text", "image"):
        encoder = getattr(student, tower).encoder
        tokens = TEXT_LENGTH if tower == "text" else cost.PATCHES + 1
        times = 2 if task == "nlvr2" and tower == "image" else 1
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder(torch.zeros(times, tokens, 768, device="meta"))
        counted += counter.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        student.image.embeddings.patch_embeddings(pixels.flatten(0, -4))
    counted += counter.get_total_flops()
    assert cost.cost_of(TASKS[task]).forward == pytest.approx(counted, rel=1e-6)


def test_parameters_are_those_of_the_models():
    student = ViltDualEncoder(ViltDualEncoderConfig(task="ve", num_hidden_layers=1, vocab_size=99))
    found = cost.cost_of(TASKS["ve"])
    layer = sum(p.numel() for p in student.text.encoder.layer[0].parameters())
    words = (30522 - 99) * 768
    expected = sum(p.numel() for p in student.parameters()) + 2 * 11 * layer + words
    assert found.student == expected
    assert found.memory(8) - found.memory(7) == found.kept


def test_the_pages_commands_are_understood():
    text = PAGE.read_text(encoding="utf-8")
    commands = [
        line.split("run.py", 1)[1].split()
        for line in text.splitlines()
        if line.startswith("python examples/paper/run.py")
    ]
    assert {run.parse(words).task for words in commands} == {*TASKS, None} - {"pretraining"}
