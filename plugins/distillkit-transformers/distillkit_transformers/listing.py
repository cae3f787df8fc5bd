"""The families that adapter files describe; read without torch, as listings need no more."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple


class Listed(NamedTuple):
    """A family that a file describes, alone or with others of the same layout.

    Attributes:
        matches: the model's classes, below ``transformers.models``.
        summary: one line for the listing.
        file: the file's name.
        note: what the layout cannot say, and why.
        tables: the adapter, which the model's configuration completes.
    """

    matches: str
    summary: str
    file: str
    note: str
    tables: Mapping[str, Any]


@functools.cache
def listed() -> Mapping[str, Listed]:
    """Every family that a file of ``families`` describes, by name."""
    found: dict[str, Listed] = {}
    folder = files(__package__).joinpath("families")
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        if not file.name.endswith(".toml"):
            continue
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
        note = tables.pop("note", "")
        for name, of_family in tables.pop("families").items():
            if name in found:
                raise ValueError(f"{file.name} and {found[name].file} both describe {name!r}")
            matches, summary = of_family["matches"], of_family["summary"]
            found[name] = Listed(matches, summary, file.name, note, tables)
    return dict(sorted(found.items()))


def adapter_tables(name: str) -> Mapping[str, Any]:
    """The adapter of a family, as its file says it."""
    return listed()[name].tables
