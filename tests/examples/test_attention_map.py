"""The example that draws attention, run as a reader would, for a few steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "attention_map.py"


def test_it_draws_the_attention_of_a_trained_model(tmp_path):
    out = tmp_path / "map.png"
    command = [sys.executable, EXAMPLE, "--steps", "2", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "vit.layers.1.attention" in done.stdout
    assert out.read_bytes().startswith(b"\x89PNG")
