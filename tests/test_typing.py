"""What a type checker says of a user's script."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
    import distillkit as dk
    from torch import nn

    recipe = dk.Recipe(name="x", terms=[{"loss": "mse", "on": "logits"}])
    distiller = dk.Distiller(nn.Linear(1, 1), nn.Linear(1, 1), recipe)
    reveal_type(distiller({"x": 1}).loss)
    reveal_type(distiller(x=1).parts)
    dk.Distillr
    dk.testing.chek_loss
    dk.losses.kl_divergance
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """The lines of mypy's report."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "user.py").write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"),
         str(folder / "user.py"), str(ROOT / "tools/typed_script.py")],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_what_a_call_returns_is_known(said):
    assert any('Revealed type is "torch._tensor.Tensor"' in line for line in said), said
    assert any('Revealed type is "dict[str, torch._tensor.Tensor]"' in line for line in said)


def test_a_misspelt_name_is_an_error_and_nothing_else_is(said):
    wrong = [line for line in said if "user.py:" in line and "error:" in line]
    names = ("Distillr", "chek_loss", "kl_divergance")
    assert len(wrong) == len(names), wrong
    for name, line in zip(names, wrong, strict=True):
        assert f'no attribute "{name}"' in line


def test_a_whole_script_is_right_apart_from_what_it_ignores(said):
    assert not [line for line in said if "typed_script.py:" in line]
