"""The demo's gallery: every page that it lists is written, with a checkpoint for each reading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

GALLERY = Path(__file__).parents[2] / "examples/dide/gallery.py"


def test_a_short_training_becomes_viewers(tmp_path):
    few = ("--teacher-steps", "2", "--steps", "6", "--scenes", "80", "--out", str(tmp_path))
    command = [sys.executable, "-W", "ignore", str(GALLERY), *few]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    listed = json.loads((tmp_path / "gallery.json").read_text(encoding="utf-8"))
    assert [one["file"] for one in listed] == ["dide.html", "soft-labels.html"]
    for one in listed:
        page = (tmp_path / one["file"]).read_text(encoding="utf-8")
        assert all(f"step {step}" in page for step in range(7))
        assert "step 7" not in page
        assert "6 steps long" in one["text"] or "as long" in one["text"]
    assert {file.suffix for file in tmp_path.iterdir()} == {".html", ".json"}
