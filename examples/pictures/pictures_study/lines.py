"""The lines that runs leave, one in JSON for each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LINES = "results.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; half a line, left by a kill, is cut off."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """One more line, on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
