"""Print constraints.txt with every dependency at the lowest version that a pyproject.toml allows.

``make test-lowest`` installs with it, so that a lower bound is something that a test has seen. What
states no lower bound stays at the version of constraints.txt.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PIN = re.compile(rf"(?P<name>{_NAME.pattern})==")
_CHOSEN_BY_TORCH = {"triton"}  # each build of torch for a GPU asks for one version
_LOWER_BOUND = re.compile(r">=\s*(\d+(?:\.\d+)*)\s*(?:,|$)")


def lowest(constraints: str, requirements: Iterable[str]) -> str:
    """The lines of ``constraints``, pins replaced by the lower bounds of ``requirements``.

    A bound on something that is not pinned there becomes a line of its own at the end. With another
    torch than the pinned one the pin of what torch chooses itself is dropped.
    """
    bounds = lower_bounds(requirements)
    lines = constraints.splitlines()
    if "torch" in bounds and f"torch=={bounds['torch']}" not in lines:
        lines = [line for line in lines if line.partition("==")[0] not in _CHOSEN_BY_TORCH]
    for i, line in enumerate(lines):
        pin = _PIN.match(line)
        if pin and canonical(pin["name"]) in bounds:
            lines[i] = f"{pin['name']}=={bounds.pop(canonical(pin['name']))}"
    lines += [f"{name}=={bound}" for name, bound in bounds.items()]
    return "\n".join(lines)


def lower_bounds(requirements: Iterable[str]) -> dict[str, str]:
    """The lower bound of every distribution that has one; of several bounds the highest.

    Raises:
        ValueError: a requirement bounds its versions in another way than ``>=``, so that nobody
            knows its lowest version.
    """
    bounds: dict[str, str] = {}
    for requirement in requirements:
        name = canonical(_name(requirement))
        found = _lower_bound(requirement)
        if found is not None:
            bounds[name] = max(bounds.get(name, "0"), found, key=_as_numbers)
    return bounds


def canonical(name: str) -> str:
    """A distribution's name as installers compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _name(requirement: str) -> str:
    found = _NAME.match(requirement.strip())
    if found is None:
        raise ValueError(f"a requirement starts with a name; got {requirement!r}")
    return found[0]


def _lower_bound(requirement: str) -> str | None:
    versions, _, _marker = requirement.partition(";")
    found = _LOWER_BOUND.search(versions)
    if found is not None:
        return found[1]
    if re.search(r"[<>=~@]", versions):
        raise ValueError(f"{requirement!r} states no lowest version; write name>=1.2")
    return None


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _declared() -> Iterator[str]:
    """The requirements of every distribution of this repository, with those of its extras."""
    for file in [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        yield from project["dependencies"]
        for extra in project.get("optional-dependencies", {}).values():
            yield from extra


if __name__ == "__main__":
    sys.stdout.write(lowest((ROOT / "constraints.txt").read_text(encoding="utf-8"), _declared()))
    sys.stdout.write("\n")
