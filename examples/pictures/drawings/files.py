"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A file beside ``target`` to write to, which takes its name when it is whole.

    What an earlier run left unfinished is replaced; an error leaves nothing.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(target.name + UNFINISHED)
    try:
        yield beside
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to write in, which takes its name when it is whole."""
    beside = target.with_name(target.name + UNFINISHED)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        beside.replace(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_json(file: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(file.read_text(encoding="utf-8"))


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with whole_file(file) as beside:
        beside.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
