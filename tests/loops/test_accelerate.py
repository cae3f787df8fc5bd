"""Two ranks started by ``accelerate launch`` train as one process on the joined batch."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("peft")

from tests.distributed import train_loops
from tests.distributed.test_train_loops import HALF, assert_same, changed_alone
from tests.loops import train_by_accelerate
from tests.loops.real_adapters import add_lora

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", "--module", "tests.loops.train_by_accelerate", str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@functools.cache
def alone():
    return train_loops.alone()


def expected(name):
    """Checkpointing and compilation change no number."""
    if name.endswith("bf16"):
        return changed_alone("bf16")
    if name.endswith("PEFT"):
        return train_loops.changed(train_loops.distiller_of(), add_lora)
    return alone()


@pytest.mark.parametrize("name", train_by_accelerate.NAMES)
def test_two_processes_train_as_one(name, two):
    for found in two:
        assert name in found, found
        assert not isinstance(found[name], str), found[name]
        assert_same(found[name], expected(name), HALF if name.endswith("bf16") else 1e-5)
