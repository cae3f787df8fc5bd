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

from drawings import tasks
from drawings.building import Sizes, build
from drawings.pictures import SPLITS, Pictures, load
from drawings.sources import ARTISTS, SETS, TEXTS

from distillkit.errors import OptionError

OUT = Path(__file__).parent / "out"


def main() -> None:
    default = Sizes()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="where everything lies: %(default)s")
    parser.add_argument("--grid", type=int, default=default.grid, help="cells on a side of a scene")
    parser.add_argument("--train", type=int, default=default.train, help="examples of training")
    parser.add_argument("--test", type=int, default=default.test, help="examples of other splits")
    given = parser.parse_args()
    started = time.perf_counter()
    try:
        build(given.out, Sizes(given.train, given.test, given.grid), _say)
        pictures = load(given.out)
    except OptionError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    print(*describe_sets(pictures), "", *describe_tasks(given.out), sep="\n")
    _say(f"{given.out}: {time.perf_counter() - started:.0f} s")


def describe_sets(pictures: Pictures) -> list[str]:
    """A table of the sets: artist, use, drawings, package and licence."""
    use = {artist: split for split, artists in ARTISTS.items() for artist in artists}
    rows = ["| set | artist | for | drawings | package | licence |", "|---|---|---|---:|---|---|"]
    for drawn in SETS:
        count = int((pictures.sets == drawn.name).sum())
        package = f"{drawn.package.name} {drawn.package.version}"
        cells = (drawn.name, drawn.artist, use[drawn.artist], count, package, drawn.package.licence)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    for package in TEXTS:
        cells = ("names, groups", "", "all", "", f"{package.name} {package.version}")
        rows.append(f"| {' | '.join(cells)} | {package.licence} |")
    return rows


def describe_tasks(folder: Path) -> list[str]:
    """A table of the tasks: examples, different texts and answers of every split."""
    rows = ["| task | split | examples | texts | answers |", "|---|---|---:|---:|---:|"]
    for name in tasks.TASKS:
        for split in SPLITS:
            task = tasks.load(folder, name, split)
            cells = (len(task), len({*task.texts}), len({*task.labels.tolist()}))
            rows.append(f"| {name} | {split} | {' | '.join(map(str, cells))} |")
    return rows


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
