"""Run tests with the versions that are installed, note what came of it, and write the table.

    python -m tools.versions run lowest -- -n 2 --dist loadgroup
    python -m tools.versions run lowest -- tests/losses tests/objective
    python -m tools.versions write

``run`` hands what follows ``--`` to pytest and adds a JSON line to ``docs/versions.jsonl``, in place
of an earlier one of the same name, versions and command. ``write`` makes
``docs/reference/versions.md`` of all lines; a test holds the page to them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES = ROOT / "docs/versions.jsonl"
PAGE = ROOT / "docs/reference/versions.md"
PACKAGES = (
    "torch", "transformers", "numpy", "einops", "pluggy", "pydantic", "hypothesis", "pytest",
)  # fmt: skip
SHOWN = 12  # tests that a page names, of those that failed


class Run(NamedTuple):
    """What came of one run of tests.

    Attributes:
        name: what the combination is for: lowest, newest.
        python: version of Python.
        packages: package -> version, of those that are installed.
        command: what pytest was given.
        machine: processor and system.
        counts: passed, failed, skipped, errors.
        failed: the tests that failed or were errors.
    """

    name: str
    python: str
    packages: dict[str, str]
    command: str
    machine: str
    counts: dict[str, int]
    failed: list[str]

    @property
    def same(self) -> tuple[Any, ...]:
        """Equal for runs of which the later one replaces the earlier."""
        return self.name, self.python, tuple(sorted(self.packages.items())), self.command


class Listener:
    """A plugin of pytest that counts outcomes, of every process under xdist."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []
        self.interrupted = False

    def pytest_keyboard_interrupt(self) -> None:
        self.interrupted = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._broken("failed" if report.when == "call" else "errors", report.nodeid)
        elif report.skipped:
            self.counts["skipped"] += 1
        elif report.when == "call":
            self.counts["passed"] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._broken("errors", report.nodeid)

    def _broken(self, outcome: str, test: str) -> None:
        self.counts[outcome] += 1
        if test not in self.failed:
            self.failed.append(test)


def run(name: str, arguments: Sequence[str], lines: Path) -> int:
    """Run the tests, add the line unless they were interrupted, and return pytest's exit status."""
    listener = Listener()
    status = int(pytest.main(list(arguments), plugins=[listener]))
    if listener.interrupted or not listener.counts:
        print("nothing is noted: the tests were interrupted, or there were none", file=sys.stderr)
        return status or 1
    command = " ".join(["python", "-m", "pytest", *map(shlex.quote, arguments)])
    found = Run(
        name, platform.python_version(), installed(), command, machine(), dict(listener.counts),
        sorted(listener.failed),
    )  # fmt: skip
    add(found, lines)
    return status


def installed() -> dict[str, str]:
    """The version of each package that matters and is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The processor and the system, without a name of the machine."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [x for x in info.read_text(encoding="utf-8").splitlines() if "model name" in x]
        model = named[0].partition(":")[2].strip() if named else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def read(lines: Path) -> list[Run]:
    """The runs that were noted.

    Raises:
        ValueError: a line that is none, with its number.
    """
    found = []
    for i, line in enumerate(lines.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Run(**json.loads(line)))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{lines.name}, line {i} is no run: {error}") from None
    return found


def add(one: Run, lines: Path) -> None:
    """Note a run, in place of an earlier one of the same."""
    kept = [x for x in read(lines) if x.same != one.same] if lines.exists() else []
    text = "".join(json.dumps(x._asdict(), sort_keys=True) + "\n" for x in [*kept, one])
    lines.write_text(text, encoding="utf-8")


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    return "\n".join(
        [HEAD, *_bounds(), "", NEEDS, "## What was run", "", *_table(runs), *_runs(runs)]
    )


def _bounds() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    plugin = ROOT / "plugins/distillkit-transformers/pyproject.toml"
    transformers = tomllib.loads(plugin.read_text(encoding="utf-8"))["project"]["dependencies"]
    extras = project["optional-dependencies"]["testing"]
    yield "| what | versions |"
    yield "| --- | --- |"
    yield f"| Python | `{project['requires-python']}` |"
    yield f"| the core | {_code(project['dependencies'])} |"
    yield f"| `distillkit[testing]` | {_code(extras)} |"
    yield f"| `distillkit-transformers` | {_code(x for x in transformers if x != 'distillkit')} |"


def _code(requirements: Any) -> str:
    return ", ".join(f"`{one}`" for one in requirements)


def _table(runs: Sequence[Run]) -> Iterator[str]:
    yield f"| run | Python | {' | '.join(PACKAGES)} | passed | failed | errors | skipped |"
    yield "|" + " --- |" * (len(PACKAGES) + 6)
    for i, one in enumerate(runs, 1):
        versions = [one.packages.get(name, "-") for name in PACKAGES]
        counts = [str(one.counts.get(x, 0)) for x in ("passed", "failed", "errors", "skipped")]
        yield f"| {i}, {one.name} | {' | '.join([one.python, *versions, *counts])} |"


def _runs(runs: Sequence[Run]) -> Iterator[str]:
    yield ""
    for i, one in enumerate(runs, 1):
        yield f"{i}. {one.name}, on {one.machine}: `{one.command}`"
        for test in one.failed[:SHOWN]:
            yield f"   - failed: `{test}`"
        if len(one.failed) > SHOWN:
            yield f"   - and {len(one.failed) - SHOWN} more"
    yield ""


HEAD = """\
# Versions

What distillkit runs with. A lower bound is a version that tests have passed with, not a guess:
`make test-versions` runs the tests with the lowest versions that are allowed and with the newest, notes
what came of it in [versions.jsonl](../versions.jsonl) and writes this page.
"""

NEEDS = """\
Some things need more than the bounds, and say so:

| what | needs | without it |
| --- | --- | --- |
| `torch.compile(fullgraph=True)` of a loss on attentions | torch 2.9 | without `fullgraph` it runs from torch 2.6 on, with breaks in the graph; the [kit](../how-to/prove-your-loss.md)'s check `compiles` names the version |
| capture inside of `torch.compile` (a compiled student, teacher or distiller whose attention is compared) | torch 2.13 | attention by fused kernels is captured from torch 2.9 on; attention written out is not, and the compiler or the capture says so |
| `distillkit_transformers.DistillationTrainer`, the extra `trainer` | transformers 5.24 | adapters alone ask for transformers 5.0; the tests ran with the versions below |
| 14 of the [families](families.md), such as `gemma4`, `qwen3_5`, `glm_ocr`, `kimi_k25` | a transformers after 5.0.0 | transformers has no such class; every other family's adapter is there |
| the fused kernels, `method="triton"` | triton | `method="auto"` takes torch's own operations |

Names that torch keeps private stand in one module, `distillkit/_torch_private.py`. A torch that lacks
one runs all the same: by the longer way, or with an error that says what is missing.
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.versions", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("run", help="run pytest and note what came of it")
    one.add_argument("name", help="what the combination is for: lowest, newest")
    one.add_argument("--lines", type=Path, default=LINES, help="the file of results")
    actions.add_parser("write", help="write the page")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    given = parser.parse_args(arguments[:cut])
    if given.action == "run":
        return run(given.name, arguments[cut + 1 :], given.lines)
    PAGE.write_text(page(read(LINES)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
