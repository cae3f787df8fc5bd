"""DistillationTrainer in two processes is one process on the joined batch: ``make loops``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")

HERE = Path(__file__).parent
PATH = [HERE, HERE.parents[1], HERE.parents[1] / "plugins" / "distillkit-transformers"]


def trained(folder, ranks, size, parts):
    """What every process of a training has learned and logged."""
    folder.mkdir()
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0",
        "PYTHONPATH": os.pathsep.join(map(str, PATH)),
    }  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={ranks}", str(HERE / "rank_of_trainer.py"), str(folder), str(size),
            str(parts),
        ],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank-{i}.pt", weights_only=False) for i in range(ranks)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone") / "run", ranks=1, size=8, parts=1)[0]


@pytest.mark.parametrize(("size", "parts"), [(4, 1), (2, 2)], ids=["at once", "accumulated"])
def test_two_processes_are_one(tmp_path, alone, size, parts):
    first, second = trained(tmp_path / "run", ranks=2, size=size, parts=parts)
    assert first["world"] == 2
    assert torch.equal(first["learned"], second["learned"])
    torch.testing.assert_close(first["learned"], alone["learned"], rtol=0, atol=1e-5)
    assert len(first["logs"]) == len(alone["logs"]) == 3
    for one, other in zip(first["logs"], alone["logs"], strict=True):
        assert one.keys() == other.keys()
        assert {"embeddings", "weight/embeddings", "attention_kl/attention.text_to_image"} <= set(
            one
        )
        for name in one.keys() - {"epoch"}:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-7), name
    for name, value in first["metrics"].items():
        if "attention_kl" in name or "embeddings" in name or "distillation" in name:
            assert value == pytest.approx(alone["metrics"][name], rel=1e-4, abs=1e-7), name
    assert [first["saves"], second["saves"]] == [1, 0]
