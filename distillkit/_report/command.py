"""``python -m distillkit report``: the page of one run, or of several beside each other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import LogError
from .findings import findings
from .page import report_of
from .reading import read_run


def run(arguments: argparse.Namespace) -> int:
    """Write the page, and say on stderr what was found; 0, as what is wrong is raised."""
    runs = [read_run(folder) for folder in arguments.runs]
    page = report_of(runs)
    path = Path(arguments.output)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise LogError(f"the report cannot be written to {str(path)!r}: {error}") from None
    for one in runs:
        for found in findings(one):
            if found.kind == "problem":
                sys.stderr.write(f"! {one.name}: {found.text}\n")
    steps = ", ".join(f"{one.name} ({len(one.rows)} steps)" for one in runs)
    sys.stderr.write(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {steps}\n")
    return 0
