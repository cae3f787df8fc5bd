"""What a page needs beside distillkit: its ``Needs:`` line, and a run with nothing else.

``python -m tools.needs [page ...]`` executes the Python blocks of every page with only those
distributions being there that its line names, and the core's own: what else is installed cannot be
imported, and its plugins are not found.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PLUGINS = ROOT / "plugins"
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(PLUGINS.glob("*/README.md")),
]
LINE = re.compile(r"^Needs: `pip install (.+?)`", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SKIPPED = re.compile(r"<!--- skip: next.*?" + BLOCK.pattern, re.DOTALL | re.MULTILINE)
SOURCES = [ROOT, PLUGINS / "distillkit-transformers", ROOT / "examples/write_a_plugin/src"]


def python_of(page: Path) -> str:
    """The Python blocks of a page, one program; without those that some machines skip."""
    text = SKIPPED.sub("", page.read_text(encoding="utf-8"))
    return "\n".join(BLOCK.findall(text))


def named_by(page: Path) -> list[str]:
    """The requirements that a page's line names; a plugin's own page is of the plugin."""
    own = [page.parent.name] if page.parent.parent == PLUGINS else []
    lines = LINE.findall(page.read_text(encoding="utf-8"))
    return own + [part.strip("'") for line in lines for part in line.split()]


def distributions_of(requirements: Iterable[str]) -> set[str]:
    """Names of the distributions that come with requirements, those of their extras included."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(requirements)
    while waiting:
        text = waiting.pop()
        if text in seen:
            continue
        seen.add(text)
        wanted = Requirement(text)
        found.add(canonicalize_name(wanted.name))
        try:
            needed = [Requirement(one) for one in metadata.requires(wanted.name) or []]
        except metadata.PackageNotFoundError:  # of another system, or of no need here
            continue
        for one in needed:
            extras = ["", *wanted.extras]
            if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(f"{one.name}[{','.join(sorted(one.extras))}]")
    return found


class Without:
    """Finds modules and distributions as Python does, apart from those that are not there."""

    def __init__(self, there: set[str]) -> None:
        self._there = there
        owners = metadata.packages_distributions().items()
        known = {module: {canonicalize_name(name) for name in names} for module, names in owners}
        known |= {one.name.replace("-", "_"): {one.name} for one in PLUGINS.iterdir()}
        self._gone = {module for module, names in known.items() if not names & there}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """The module, unless it is of a distribution that is not there."""
        del target
        return None if name.partition(".")[0] in self._gone else PathFinder.find_spec(name, path)

    def find_distributions(
        self, context: metadata.DistributionFinder.Context
    ) -> Iterator[metadata.Distribution]:
        """The distributions that are there."""
        for one in PathFinder.find_distributions(context):
            if canonicalize_name(one.name) in self._there:
                yield one

    def invalidate_caches(self) -> None:
        """As Python's own."""
        PathFinder.invalidate_caches()


def run_alone(page: str) -> None:
    """Execute the blocks of a page in this process, with nothing but what its line names."""
    program = python_of(Path(page))
    finder = Without(distributions_of(["distillkit", *named_by(Path(page))]))
    sys.meta_path = [finder if one is PathFinder else one for one in sys.meta_path]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("page.py").write_text(program, encoding="utf-8")
        sys.path.insert(0, folder)
        runpy.run_path("page.py", run_name="page")
        os.chdir(ROOT)


def main(pages: Sequence[str]) -> int:
    """Run pages, each in a process of its own; 1 where one lacks something."""
    wrong = 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    for page in [Path(one).resolve() for one in pages] or PAGES:
        if not python_of(page):
            continue
        code = f"from tools.needs import run_alone; run_alone({str(page)!r})"
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8"
        )
        said = done.stderr.strip().splitlines()[-1:] if done.returncode else ["runs"]
        print(f"{page.relative_to(ROOT)}: {' '.join(said)}", flush=True)
        wrong = wrong or int(done.returncode != 0)
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
