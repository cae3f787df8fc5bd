"""How far one gets in the tasks on drawings without looking, or without reading.

python examples/pictures/baselines.py [DIR] [--write docs/how-to/pictures.md]

The tasks are useful only if a text without its scene, and a scene without its text, say nothing of
the answer. "perfect perception" reads the text beside the true contents: it proves the labels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import drawings
from drawings.shortcuts import measure, share_right
from drawings.tables import describe_sets, describe_tasks
from drawings.tasks import SPLITS, TASKS, Task, load

from distillkit.errors import OptionError

TABLES = ("drawings", "tasks", "baselines")
HEADS = {
    "prior": "prior",
    "text": "same text",
    "words": "words",
    "text_limit": "text, limit",
    "contents": "contents",
    "cells": "filled",
    "scene_limit": "scene, limit",
    "reader": "perfect perception",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=drawings.OUT)
    parser.add_argument("--write", type=Path, help="the document whose tables are replaced")
    given = parser.parse_args()
    try:
        text = read_document(given.write)
        pictures = drawings.load(given.folder)
        tables = {
            "drawings": describe_sets(pictures),
            "tasks": describe_tasks(given.folder),
            "baselines": describe_baselines(given.folder, pictures),
        }
    except OptionError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    print("\n\n".join("\n".join(rows) for rows in tables.values()))
    if text is not None:
        given.write.write_text(with_tables(text, tables), encoding="utf-8")


def read_document(file: Path | None) -> str | None:
    """The text of a document, if one is to be written.

    Raises:
        OptionError: it has no place for one of the tables; said before minutes of measuring.
    """
    if file is None:
        return None
    if not file.is_file():
        raise OptionError(f"no document {file} to write tables into")
    text = file.read_text(encoding="utf-8")
    with_tables(text, dict.fromkeys(TABLES, ()))
    return text


def describe_baselines(folder: Path, pictures: drawings.Pictures) -> list[str]:
    """A table of accuracies in percent: every task, split, and kind of question."""
    rows = [
        f"| task | split | {' | '.join(HEADS.values())} |",
        f"|---|---|{'---:|' * len(HEADS)}",
    ]
    for name in TASKS[:3]:
        splits = [load(folder, name, split) for split in SPLITS]
        if name == "vqa":  # whose kinds have different answers
            splits += of_kinds(load(folder, name, "test"))
        for split, found in zip(splits, measure(splits[0], splits, pictures), strict=True):
            shares = (f"{100 * asdict(found)[key]:.1f}" for key in HEADS)
            rows.append(f"| {name} | {split.split} | {' | '.join(shares)} |")
    for split in SPLITS:
        task = load(folder, "retrieval", split)
        rows.append(retrieval_row(task, pictures))
    return rows


def of_kinds(task: Task) -> list[Task]:
    """The examples of each kind as a split of its own."""
    return [
        replace(
            task,
            split=f"{task.split}, {kind}",
            examples=tuple(one for one in task.examples if one.kind == kind),
        )
        for kind in dict.fromkeys(sorted(one.kind for one in task.examples))
    ]


def retrieval_row(task: Task, pictures: drawings.Pictures) -> str:
    """One in the number of names, and what names say beside true contents."""
    chance = 1 / len({*task.labels.tolist()})
    right = share_right(task, pictures)
    shares = {**dict.fromkeys(HEADS, ""), "prior": f"{100 * chance:.2f}"}
    shares["reader"] = f"{100 * right:.1f}"
    return f"| {task.name} | {task.split} | {' | '.join(shares.values())} |"


def with_tables(text: str, tables: Mapping[str, Sequence[str]]) -> str:
    """A document with these tables between their marks, ``<!-- name -->``.

    Raises:
        OptionError: it has no place for one of them.
    """
    for name, rows in tables.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise OptionError(f"no place for these tables: {begin.strip()} ... {end.strip()}")
        text = "\n".join((before + begin, *rows, end + after))
    return text


if __name__ == "__main__":
    main()
