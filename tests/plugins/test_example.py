"""The stranger's package: installed for real, listed, tested, taken away, nothing else changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "write_a_plugin"
KINDS = ("losses", "adapters", "aligners", "recipes", "operations", "weightings", "plugins")
LOSS = (
    "jeffreys_divergence | acme-distill | Forward plus reverse KL of softened logits. | "
    "nonnegative, zero_at_identity, symmetric, shift_invariant | jeffreys-1946-invariant"
)
ADAPTER = (
    "acme | acme-distill | Acme's fusion and dual encoders, for images of any size. | "
    "acme_distill.models.*"
)
COMPARES = (
    " | compares | 1.0 x jeffreys_divergence/logits, 1.0 x attention_kl/attention.text_to_image, "
    "1.0 x attention_kl/attention.image_to_text"
)
CONFIGURATION = ("DISTILLKIT_", "PYTEST_", "COV_")


def run(*arguments, path, folder):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(CONFIGURATION)}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=clean | {"PYTHONPATH": str(path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lines_of(kind, *, path, folder):
    """The lines of a listing, without its columns' widths."""
    out = run("-m", "distillkit", kind, path=path, folder=folder)
    return {re.sub(r"\s{2,}", " | ", line) for line in out.splitlines()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example as pip installs it, from a copy, without a network."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    target = folder / "site"
    run(*pip, "--disable-pip-version-check", "--target", str(target), str(folder / "source"),
        path="", folder=folder)  # fmt: skip
    return target


def test_installing_it_adds_its_own_lines_to_the_listings_and_changes_nothing_else(
    installed, tmp_path
):
    before = {kind: lines_of(kind, path=tmp_path, folder=tmp_path) for kind in KINDS}
    after = {kind: lines_of(kind, path=installed, folder=tmp_path) for kind in KINDS}
    nothing = {f"no {kind} are registered" for kind in KINDS}
    assert all(before[kind] - nothing <= after[kind] for kind in KINDS)
    assert {kind: after[kind] - before[kind] for kind in KINDS} == {
        "losses": {LOSS},
        "adapters": {ADAPTER},
        "aligners": set(),
        "recipes": {
            "acme | acme-distill | DiDE with the Jeffreys divergence of the answers.",
            COMPARES,
        },
        "operations": set(),
        "weightings": set(),
        "plugins": {"acme-distill:acme | 1.0 | loaded | 1 loss, 1 adapter, 1 recipe"},
    }


def test_its_own_tests_pass_where_it_is_installed(installed, tmp_path):
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__py*"))
    shutil.copy(EXAMPLE / "pyproject.toml", tmp_path)
    out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", path=installed, folder=tmp_path)
    assert re.search(r"^\d+ passed", out, re.MULTILINE), out


def test_removing_it_takes_everything_away(installed, tmp_path):
    shutil.copytree(installed, tmp_path / "site")
    kinds = ("adapters", "plugins")
    assert "acme" in str(
        [lines_of(kind, path=tmp_path / "site", folder=tmp_path) for kind in kinds]
    )
    for part in (tmp_path / "site").glob("acme_distill*"):
        shutil.rmtree(part)
    assert not list((tmp_path / "site").glob("*acme*"))
    for kind in kinds:
        gone = lines_of(kind, path=tmp_path / "site", folder=tmp_path)
        assert gone == lines_of(kind, path="", folder=tmp_path)
