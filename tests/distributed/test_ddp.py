"""Two real processes train a student exactly as one does on the joined batch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).parent / "train_ddp.py"


def test_attention_alone_trains_under_ddp_as_in_one_process(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))

    spec = importlib.util.spec_from_file_location("train_ddp", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    distiller = script.distiller_of()
    before = {name: value.clone() for name, value in distiller.student.state_dict().items()}
    alone = script.train(distiller, distiller.student, slice(0, 4))

    moved = [name for name in alone if not torch.equal(alone[name], before[name])]
    assert {"words.weight", "patches.weight", "text.blocks.1.qkv.weight"} <= set(moved)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6, msg=name)
