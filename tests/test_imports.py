"""Importing and listing stay fast: no torch, no transformers; names are what they seem."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

import distillkit as dk

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "pydantic", "numpy")


def loaded_by(code):
    """Which heavy packages a fresh interpreter has loaded after running ``code``."""
    report = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "code",
    [
        "import distillkit",
        "import distillkit; dir(distillkit); distillkit.errors.UnknownNameError",
        "import distillkit; distillkit.LossSpec('x', 'm:f', signature='(v),(v)->()'); distillkit.register",
        "import distillkit, distillkit_transformers as more; distillkit.__version__, more.__version__",
        *(
            f"from distillkit.__main__ import main; main(['{kind}'])"
            for kind in ("losses", "recipes", "adapters", "aligners", "operations", "plugins")
        ),
    ],
)
def test_nothing_heavy_is_loaded(code):
    assert loaded_by(code) == "[]"


def test_the_check_can_fail():
    assert "torch" in loaded_by("import distillkit; distillkit.losses")


def test_what_the_kit_needs_and_lacks_is_said_with_the_extra():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import distillkit\n"
        "try:\n    distillkit.testing.check_loss\n"
        "except ModuleNotFoundError as error:\n    print(error.name, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = 'hypothesis distillkit.testing.check_loss needs hypothesis: pip install "distillkit['
    assert done.stdout.startswith(expected), done.stdout


def test_a_notebook_shows_the_table_that_print_shows():
    table = dk.BackboneCheck("A<B>", "C", (dk.OfferedSignal("logits", shape="(1, 2)"),))
    shown = table._repr_html_()
    assert shown.startswith("<pre")
    assert "A&lt;B&gt; by C" in shown
    assert "(1, 2)" in shown


def test_every_public_name_resolves_and_is_no_module():
    modules = {name for name in dk.__all__ if isinstance(getattr(dk, name), ModuleType)}
    assert modules == {"errors", "losses", "plot", "testing"}
    assert dir(dk) == dk.__all__
    with pytest.raises(AttributeError, match="no attribute 'capturing'"):
        dk.capturing  # noqa: B018


def test_the_table_for_editors_is_the_table_that_runs():
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(dk))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    listed = {alias.asname: node.module for node in block.body for alias in node.names}
    assert set(listed) == set(dk.__all__)
    assert {n: m for n, m in listed.items() if m} == dk._HOMES


@pytest.mark.parametrize(
    ("package", "distribution"),
    [("distillkit", "distillkit"), ("distillkit_transformers", "distillkit-transformers")],
)
def test_a_package_says_the_version_of_its_distribution(package, distribution):
    assert __import__(package).__version__ == version(distribution)


@pytest.mark.parametrize(
    ("folder", "package"),
    [(ROOT, "distillkit"), (ROOT / "plugins/distillkit-transformers", "distillkit_transformers")],
)
def test_a_checkout_that_is_not_installed_has_a_version_below_every_release(folder, package):
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import {package} as p; print(p.__version__)"
    command = [sys.executable, "-I", "-S", "-c", code]  # without site-packages
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0+unknown"
