"""What the kernels need of a GPU, read from binaries that are compiled here and run nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton (pip install triton)")

ROOT = Path(__file__).parents[3]
# what one program may use: ptxas ends at 255 registers; shared memory by the compute capability
SHARED = {"cuda:80": 163 << 10, "cuda:90": 227 << 10, "cuda:100": 227 << 10, "hip:gfx942": 64 << 10}
# every tile in half precision for three generations; what is alike in them is compiled for one
WORK = {
    "cuda:80": ["bfloat16 plain", "float32 plain"],
    "cuda:90": ["bfloat16 plain 0"],
    "cuda:100": ["bfloat16 plain 0"],
    "hip:gfx942": ["bfloat16 plain 0"],
}


def compiled(target, only, folder):
    """What ``tools.kernel_resources`` found."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable, "-m", "tools.kernel_resources", target, "--only", only,
        "--json", str(folder / "found.json"), "--processes", "1",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("only", ["64 bfloat16 everything 0", "16 bfloat16 single 0"])
def test_masks_and_sizes_of_one_compile(only, tmp_path):
    found = compiled("cuda:80", only, tmp_path)
    assert {x["step"] for x in found} == {"values", "queries", "keys"}
    assert all(x["shared"] <= SHARED["cuda:80"] and x["spilled"] <= 512 for x in found), found


@pytest.mark.parametrize(
    ("target", "only"), [(t, only) for t, all_ in WORK.items() for only in all_]
)
def test_every_tile_fits_the_machine(target, only, tmp_path):
    found = compiled(target, only, tmp_path)
    heads = [x for x in found if x["step"] != "logits"]
    assert {(x["step"], x["width"]) for x in heads} == {
        (step, width) for step in ("values", "queries", "keys") for width in (16, 32, 64, 128, 256)
    }
    for one in found:
        assert one["shared"] <= SHARED[target], one
        assert 0 < one["registers"] <= (512 if target.startswith("hip") else 255), one
        # the widest heads in float32 do not fit into registers whatever the tile
        wide = one["dtype"] == "float32" and one["width"] == 256
        assert one["spilled"] <= (256 if wide else 32), one
