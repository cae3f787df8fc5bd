"""The examples of loops that need libraries of their own: the loss falls."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for library in ("accelerate", "peft", "lightning"):
    pytest.importorskip(library)

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from test_example_loops import LOOPS, losses

LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
          "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
          "--main_process_port", "0")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "how"),
    [("accelerate_loop", ()), ("accelerate_loop", LAUNCH), ("trainer", ()),
     ("lightning_loop", ()), ("peft_student", ())],
)  # fmt: skip
def test_the_loss_falls(name, how):
    first, last = losses(*how, str(LOOPS / f"{name}.py"))
    assert last < 0.7 * first
