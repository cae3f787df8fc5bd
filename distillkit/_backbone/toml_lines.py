"""On which line of a TOML file a key stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]")
_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")
_KEY = re.compile(rf"^\s*((?:{_PART.pattern})(?:\s*\.\s*(?:{_PART.pattern}))*)\s*=")

Place = tuple[str | int, ...]


def line_of(text: str, place: Sequence[str | int], keys: Iterable[str] = ()) -> int:
    r"""The line, counted from 1, of the innermost table or key of a place that has one.

    Args:
        text: the file, valid TOML.
        place: its keys and indices, outermost first.
        keys: keys of the table there, of which the first that has a line is meant.

    Examples:
        >>> line_of("[[runs]]\na = 1\n[[runs]]\na = 2", ("runs", 1, "a"))
        4
    """
    lines = _lines(text)
    for key in keys:
        if (*place, key) in lines:
            return lines[*place, key]
    known = [tuple(place[:end]) for end in range(len(place), 0, -1)]
    return next((lines[one] for one in known if one in lines), 1)


def _lines(text: str) -> dict[Place, int]:
    """The line of every table and key that starts one."""
    found: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    table: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        header, key = _HEADER.match(line), _KEY.match(line)
        if header is not None:
            path = _parts(header[2])
            table = ()
            for part in path[:-1]:
                table = (*table, part)
                if table in counts:
                    table = (*table, counts[table])
            table = (*table, path[-1])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                found.setdefault(table, number)
                table = (*table, counts[table])
            found.setdefault(table, number)
        elif key is not None:
            for end in range(1, len(_parts(key[1])) + 1):
                found.setdefault((*table, *_parts(key[1])[:end]), number)
    return found


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))
