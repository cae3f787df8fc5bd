"""Fake distributions on the path: in this process, or in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from distillkit import errors
from distillkit._plugins import loading, registry

FAKES = Path(__file__).parents[1] / "support" / "fake_plugins"


def paths_of(names):
    return [str(FAKES / name) for name in names]


@pytest.fixture(autouse=True)
def _as_if_nothing_was_loaded(monkeypatch):
    for variable in ("DISTILLKIT_PLUGINS", "DISTILLKIT_TRACE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(registry, "_registered", ())
    monkeypatch.setattr(loading, "_CATALOGUE", loading._Catalogue())
    yield
    for module in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[module]


@pytest.fixture
def install(monkeypatch):
    """``install("good", "twin")`` puts fake distributions on this process's path."""

    def put(*names):
        for path in paths_of(names):
            monkeypatch.syspath_prepend(path)

    return put


@pytest.fixture
def plugin(monkeypatch, tmp_path):
    """``plugin(code)``: what becomes of a plugin module of this code, the only one loaded."""

    def made(code):
        head = "import distillkit as dk\nfrom distillkit import LossSpec, hookimpl\n"
        (tmp_path / "fake_adhoc.py").write_text(head + textwrap.dedent(code), encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("DISTILLKIT_PLUGINS", "fake_adhoc")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.PluginLoadWarning)
            return loading.plugins()[-1]

    return made


@pytest.fixture
def run():
    """``run("-m", "distillkit", "losses", installed=["good"])`` in a fresh interpreter."""

    def start(*arguments, installed=(), check=True, **environment):
        path = os.pathsep.join([*paths_of(installed), os.environ.get("PYTHONPATH", "")])
        clean = {k: v for k, v in os.environ.items() if not k.startswith("DISTILLKIT_")}
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=check,
            env=clean | {"PYTHONPATH": path} | environment,
        )

    return start
