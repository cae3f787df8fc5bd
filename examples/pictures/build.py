"""Fetch real drawings of named things, render them, and make four tasks of them.

python examples/pictures/build.py [--out DIR]

What is there already is not made again; an interrupted run goes on where it stopped. Nothing that
is fetched is redistributed: the licences of the drawings, printed at the end, are their artists'.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import drawings
from drawings.building import Sizes, build
from drawings.tables import describe_sets, describe_tasks

from distillkit.errors import OptionError


def main() -> None:
    default = Sizes()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=drawings.OUT, help="where everything lies: %(default)s"
    )
    parser.add_argument("--grid", type=int, default=default.grid, help="cells on a side of a scene")
    parser.add_argument("--train", type=int, default=default.train, help="examples of training")
    parser.add_argument("--test", type=int, default=default.test, help="examples of other splits")
    given = parser.parse_args()
    started = time.perf_counter()
    try:
        build(given.out, Sizes(given.train, given.test, given.grid), _say)
        pictures = drawings.load(given.out)
    except OptionError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    print(*describe_sets(pictures), "", *describe_tasks(given.out), sep="\n")
    _say(f"{given.out}: {time.perf_counter() - started:.0f} s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
