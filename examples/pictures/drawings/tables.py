"""What was built, as rows of Markdown."""

from __future__ import annotations

from pathlib import Path

from . import tasks
from .pictures import SPLITS, Pictures
from .sources import ARTISTS, SETS, TEXTS


def describe_sets(pictures: Pictures) -> list[str]:
    """A table of the sets: artist, use, drawings, package and licence."""
    use = {artist: split for split, artists in ARTISTS.items() for artist in artists}
    rows = ["| set | artist | for | drawings | package | licence |", "|---|---|---|---:|---|---|"]
    for drawn in SETS:
        count = int((pictures.sets == drawn.name).sum())
        own = drawn.package
        cells = [drawn.name, drawn.artist, use[drawn.artist], str(count)]
        rows.append(f"| {' | '.join(cells)} | {own.name} {own.version} | {own.licence} |")
    for package in TEXTS:
        named = f"{package.name} {package.version}"
        rows.append(f"| names, groups |  | all |  | {named} | {package.licence} |")
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
