"""The tutorial shows the example's own code, and every output that a page shows is the real one."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

from distillkit import testing

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial" / "plug-in-your-backbone.md"
EXAMPLE = ROOT / "examples" / "write_a_plugin"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def same(want, got):
    return doctest.OutputChecker().check_output(want, got, FLAGS)


def without_types(tree):
    """Code as it is compared: the tutorial leaves the annotations of the adapter out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                argument.annotation = None
    return ast.dump(tree)


@pytest.mark.parametrize("file", ["adapter.py", "losses.py", "plugin.py"])
def test_the_tutorial_shows_every_function_of_the_package(file):
    shown = {
        without_types(node)
        for language, code in FENCE.findall(TUTORIAL.read_text())
        if language == "python"
        for node in ast.parse(code).body
    }
    source = ast.parse((EXAMPLE / "src" / "acme_distill" / file).read_text())
    parts = [node for node in source.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert parts
    for node in parts:
        assert without_types(node) in shown, f"{file}: {node.name} differs from the tutorial"


@pytest.mark.parametrize("file", ["src/acme_distill/recipes/acme.toml", "pyproject.toml"])
def test_the_tutorial_shows_the_packages_data(file):
    text = (EXAMPLE / file).read_text()
    if file == "pyproject.toml":
        text = text[text.index("[project.entry-points") :].partition("\n\n")[0]
    assert text in TUTORIAL.read_text()


def test_what_the_tutorial_prints_is_what_it_shows(tmp_path):
    blocks = FENCE.findall(TUTORIAL.read_text())
    namespace, shown = {"__name__": "tutorial"}, 0
    with contextlib.chdir(tmp_path):
        for i, (language, code) in enumerate(blocks):
            if language != "python":
                continue
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(code, f"block {i}", "exec"), namespace)
            if out.getvalue():
                assert blocks[i + 1][0] == "text", f"block {i} prints, and shows nothing"
                assert same(blocks[i + 1][1], out.getvalue()), out.getvalue()
                shown += 1
    assert shown >= 3


def test_what_the_reference_shows_of_check_plugin_is_what_it_returns():
    page = (ROOT / "docs" / "reference" / "plugins.md").read_text()
    shown = page[page.index("passed  loads") :].partition("```")[0]
    results = testing.check_plugin("acme_distill.plugin")
    assert same(shown, "\n".join(map(str, results)) + "\n")
