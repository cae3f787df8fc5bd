"""Run the installed wheels: versions, listings, files of data, a loss.

``make smoke`` runs it in a fresh environment, isolated from the checkout.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import files, version
from pathlib import Path

import distillkit_transformers
import torch

import distillkit
from distillkit import losses

PACKAGES = {"distillkit": distillkit, "distillkit-transformers": distillkit_transformers}


def main() -> None:
    """Stop with an error at the first thing that is not as installed."""
    for name, package in PACKAGES.items():
        check_installation(name, Path(str(package.__file__)))
        require(package.__version__ == version(name), f"{name}.__version__ is not the wheel's")
    own = version("distillkit")
    require(run("--version") == f"distillkit {own}\n", "--version is not the wheel's")
    require("kl_divergence" in run("losses"), "the losses are not listed")
    require("vilt" in run("adapters"), "the adapters of the plugin are not listed")
    require("a recipe, 'dide'" in run("check", "dide"), "the recipe dide is not readable")
    require("Hinton" in losses.citation("kl_divergence"), "the references are not readable")
    logits = torch.randn(8, 10)
    distance = losses.masked_mean(losses.kl_divergence(logits, logits))
    require(abs(float(distance)) < 1e-6, f"equal logits have a KL divergence of {distance}, not 0")
    sys.stdout.write(f"{' and '.join(PACKAGES)} {own} run from their wheels\n")


def check_installation(name: str, module: Path) -> None:
    """Ask that a package runs from this environment and that its wheel holds every file."""
    require(module.is_relative_to(sys.prefix), f"{name} was imported from {module}")
    held = {path.name for path in files(name) or ()}
    missing = {"LICENSE", "py.typed"} - held
    require(not missing, f"the wheel of {name} lacks {', '.join(sorted(missing))}")


def run(*arguments: str) -> str:
    """What the command line prints."""
    command = [sys.executable, "-I", "-m", "distillkit", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def require(holds: bool, otherwise: str) -> None:  # noqa: FBT001
    """End with what is wrong."""
    if not holds:
        sys.exit(f"smoke: {otherwise}")


if __name__ == "__main__":
    main()
