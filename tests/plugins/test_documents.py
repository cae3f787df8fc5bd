"""The tutorial shows the example's own code, and every output that a page shows is the real one."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import os
import re
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

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
        for language, code in FENCE.findall(TUTORIAL.read_text(encoding="utf-8"))
        if language == "python"
        for node in ast.parse(code).body
    }
    source = ast.parse((EXAMPLE / "src" / "acme_distill" / file).read_text(encoding="utf-8"))
    parts = [node for node in source.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert parts
    for node in parts:
        assert without_types(node) in shown, f"{file}: {node.name} differs from the tutorial"


@pytest.mark.parametrize("file", ["src/acme_distill/recipes/acme.toml", "pyproject.toml"])
def test_the_tutorial_shows_the_packages_data(file):
    text = (EXAMPLE / file).read_text(encoding="utf-8")
    if file == "pyproject.toml":
        text = text[text.index("[project.entry-points") :].partition("\n\n")[0]
    assert text in TUTORIAL.read_text(encoding="utf-8")


def test_what_the_tutorial_prints_is_what_it_shows(tmp_path):
    blocks = FENCE.findall(TUTORIAL.read_text(encoding="utf-8"))
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


def pieces_of_the_tutorial():
    """File -> text, from the page alone; `models.py` is the one file that the reader copies."""
    blocks = FENCE.findall(TUTORIAL.read_text(encoding="utf-8"))

    def the(*marks):
        (found,) = [code for _, code in blocks if all(mark in code for mark in marks)]
        return found

    head = the("from .models import PATCH, FusionEncoder")
    package = "src/acme_distill"
    # the page registers its loss behind the function
    loss = the("def jeffreys_divergence(").partition("\n\nspec = ")[0]
    recipe = the('name = "acme"', "[[terms]]").partition('write_text("""')[2].partition('"""')[0]
    models = EXAMPLE / package / "models.py"
    return {
        "pyproject.toml": the("[build-system]"),
        f"{package}/__init__.py": "",
        f"{package}/models.py": models.read_text(encoding="utf-8"),
        f"{package}/adapter.py": f"{head}\n\n{the('class AcmeAdapter:')}",
        f"{package}/losses.py": loss,
        f"{package}/plugin.py": the("DISTILLKIT_API = 1"),
        f"{package}/recipes/acme.toml": recipe,
    }


def test_the_pieces_of_the_tutorial_are_a_package_that_distils(tmp_path, run):
    for file, text in pieces_of_the_tutorial().items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    (wheel,) = WheelBuilder(str(tmp_path)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    listed = run("-m", "distillkit", "plugins", PYTHONPATH=path).stdout
    page = TUTORIAL.read_text(encoding="utf-8")
    (shown,) = re.findall(r"^(acme-distill:acme  .*)$", page, re.MULTILINE)
    assert re.sub(r" +", " ", shown) in re.sub(r" +", " ", listed)
    # the line that the page gives to whoever installs the package
    (line,) = re.findall(r"^(distiller = dk\.Distiller\(DualEncoder\(\).*)$", page, re.MULTILINE)
    code = (
        "import distillkit as dk\n"
        "from acme_distill.models import DualEncoder, FusionEncoder, sample_batch\n"
        f"{line}\nprint(*distiller(sample_batch()).parts)"
    )
    printed = run("-W", "error", "-c", code, PYTHONPATH=path).stdout
    assert "jeffreys_divergence/logits" in printed


def test_what_the_reference_shows_of_check_plugin_is_what_it_returns():
    page = (ROOT / "docs" / "reference" / "plugins.md").read_text(encoding="utf-8")
    shown = page[page.index("passed  loads") :].partition("```")[0]
    results = testing.check_plugin("acme_distill.plugin")
    assert same(shown, "\n".join(map(str, results)) + "\n")
