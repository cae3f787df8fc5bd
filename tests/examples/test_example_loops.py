"""The examples of loops that need no library beside torch and transformers: the loss falls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LOOPS = Path(__file__).parents[2] / "examples" / "loops"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def losses(*command):
    """The first and the last loss that an example prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command], env=environment, capture_output=True,
        text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, last = re.search(r"loss ([\d.]+) -> ([\d.]+)", done.stdout).groups()
    return float(first), float(last)


@pytest.mark.parametrize(("name", "how"), [("raw", ()), ("ddp", TORCHRUN), ("fsdp2", TORCHRUN)])
def test_the_loss_falls(name, how):
    first, last = losses(*how, str(LOOPS / f"{name}.py"))
    assert last < 0.7 * first
