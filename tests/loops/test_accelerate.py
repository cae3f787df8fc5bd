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

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "distributed")]
import train_by_accelerate
import train_loops
from test_train_loops import assert_same

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", str(HERE / "train_by_accelerate.py"), str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@functools.cache
def alone():
    return train_loops.alone()


@pytest.mark.parametrize("name", train_by_accelerate.NAMES)
def test_two_processes_train_as_one(name, two):
    for found in two:
        assert name in found, found
        assert_same(found[name], alone())
