"""The documents show what inspect prints."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from distillkit.__main__ import main
from tools import inspected_page

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs/tutorial/plug-in-your-backbone.md"
SETUP = """
from acme_distill.models import FusionEncoder, sample_batch

def fusion():
    return FusionEncoder(), sample_batch(4, height=8, width=12)
"""


def test_ten_files_are_as_they_are_printed():
    assert inspected_page.PAGE.read_text(encoding="utf-8") == inspected_page.page(), (
        "run make documents"
    )


def test_the_tutorials_file_is_the_one_that_is_written(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "acme_fusion_setup.py").write_text(SETUP, encoding="utf-8")
    with contextlib.chdir(tmp_path):
        assert main(["inspect", "acme_fusion_setup:fusion", "-o", "fusion.toml"]) == 0
    written = (tmp_path / "fusion.toml").read_text(encoding="utf-8")
    text = TUTORIAL.read_text(encoding="utf-8")
    shown = re.search(r"<!-- fusion.toml -->\n\n```toml\n(.*?)```", text, re.DOTALL)[1]
    assert shown == written.partition("\n\n# what the adapter kit")[0] + "\n"
