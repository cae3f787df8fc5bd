"""Build the site: stage the pages, run Sphinx, list the versions.

    python -m tools.website

A warning of Sphinx is an error. The site works from disk: open ``build/site/index.html``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

import distillkit

from . import stage, versions
from .pages import ROOT


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/site")
    parser.add_argument("--work", type=Path, default=ROOT / "build/docs", help="staged pages")
    parser.add_argument("--gallery", type=Path, help="the folder that make gallery wrote")
    parser.add_argument("--version", default=distillkit.__version__, help="the folder's name")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    source = given.work / "source"
    stage.stage(source, given.gallery)
    os.environ["DISTILLKIT_DOCS_VERSION"] = given.version
    target = given.out / given.version
    failed = build_main(
        [
            "-q",
            "-W",
            "--keep-going",
            "-j",
            "auto",
            "-d",
            str(given.work / "doctrees"),
            str(source),
            str(target),
        ]
    )
    if failed:
        return failed
    found = versions.write_list(given.out)
    print(f"{target / 'index.html'}; versions: {', '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
