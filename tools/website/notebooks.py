"""Examples as notebooks: the same lines, a cell for each thing that is defined.

    python -m tools.website.notebooks examples/attention_map.py attention_map.ipynb

What the command line chooses stands in the last cell.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_SCRIPT_END = 'if __name__ == "__main__":'


def examples() -> list[Path]:
    """The examples that are one file: they import none of the others."""
    scripts = sorted(ROOT.glob("examples/*.py"))
    names = {script.stem for script in scripts}
    return [script for script in scripts if not names & _imported(script)]


def _imported(script: Path) -> set[str]:
    """The modules that a script names in its imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def notebook_of(script: Path) -> dict[str, Any]:
    """A notebook in the format 4.5 of Jupyter.

    Raises:
        ValueError: the script has no docstring, or does not end in a call of its ``main``.
    """
    text = script.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    if not docstring or f"{_SCRIPT_END}\n    main()\n" not in text:
        raise ValueError(
            f"{script.name}: an example that becomes a notebook has a docstring and ends in "
            f"'{_SCRIPT_END}' with a call of main()"
        )
    cells = [_cell("markdown", _introduction(script, docstring))]
    cells += [_cell("code", source) for source in code_cells(text)]
    cells.append(_cell("code", run_cell(script)))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _introduction(script: Path, docstring: str) -> str:
    first, _, rest = docstring.partition("\n")
    name = f"examples/{script.name}"
    return f"# {first}\n{rest}\n\nThis notebook has the lines of `{name}` of distillkit."


def code_cells(text: str) -> Iterator[str]:
    """The script's lines, cut before each function and class and behind it."""
    tree = ast.parse(text)
    lines = text.splitlines()
    starts: list[int] = []
    previous: ast.stmt | None = None
    body = tree.body[1:]  # without the docstring
    for node in body:
        if isinstance(node, ast.If) and lines[node.lineno - 1] == _SCRIPT_END:
            break
        apart = (ast.FunctionDef, ast.ClassDef)
        if (
            previous is None
            or isinstance(node, apart)
            or isinstance(previous, apart)
            or _is_import(previous) != _is_import(node)
        ):
            starts.append(_first_line(node, lines))
        previous = node
    end = lines.index(_SCRIPT_END)
    for start, stop in zip(starts, [*starts[1:], end], strict=True):
        yield "\n".join(lines[start:stop]).strip("\n")


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def _first_line(node: ast.stmt, lines: list[str]) -> int:
    """Where a statement begins, with its decorators and the comments above it."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(one.lineno for one in decorators)]) - 1
    while first > 0 and lines[first - 1].startswith("#"):
        first -= 1
    return first


def run_cell(script: Path, *options: str) -> str:
    """The last cell: the command line, and the call."""
    arguments = json.dumps([script.name, *options])
    return f"import sys\n\nsys.argv = {arguments}  # options of the command line follow\nmain()"


def _cell(kind: str, source: str) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "cell_type": kind,
        "metadata": {},
        "source": source.splitlines(keepends=True),
    }
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell


def text_of(script: Path) -> str:
    """The notebook's file."""
    return json.dumps(notebook_of(script), indent=1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.write_text(text_of(arguments.script), encoding="utf-8")


if __name__ == "__main__":
    main()
