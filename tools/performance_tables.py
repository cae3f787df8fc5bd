"""Put what the benchmarks measured into the docs.

    python benchmarks/distiller.py --json build/distiller.json
    python -m tools.performance_tables build/distiller.json

The tables of a benchmark lie between ``<!-- NAME -->`` and ``<!-- end NAME -->``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENTS = (
    DOCS / "performance.md",
    DOCS / "explanation" / "signal-cache.md",
    DOCS / "explanation" / "kernels.md",
)


def marks(measured: Mapping[str, Any]) -> tuple[str, str]:
    """What a document has before and behind the tables of a benchmark."""
    name, device = measured["benchmark"], measured["device"]
    key = name if device == "cpu" else f"{name}-{device}"
    return f"<!-- {key} -->", f"<!-- end {key} -->"


def document_of(measured: Mapping[str, Any]) -> Path:
    """The document that has a place for the tables of a benchmark; by default the first."""
    start, _ = marks(measured)
    found = (path for path in DOCUMENTS if start in path.read_text(encoding="utf-8"))
    return next(found, DOCUMENTS[0])


def with_tables(text: str, measured: Mapping[str, Any]) -> str:
    """The document with the tables of one benchmark.

    Raises:
        ValueError: the document has no place for them.
    """
    start, stop = marks(measured)
    head, found, rest = text.partition(start)
    _, ended, tail = rest.partition(stop)
    if not found or not ended:
        raise ValueError(f"the document has no place for these tables: {start} ... {stop}")
    tables = [f"{title}\n\n{table}" for title, table in measured["tables"].items()]
    parts = [head + start, f"Measured on: {measured['machine']}.", *tables, stop + tail]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", nargs="+", type=Path, help="what a benchmark's --json wrote")
    for path in parser.parse_args().measured:
        measured = json.loads(path.read_text(encoding="utf-8"))
        document = document_of(measured)
        try:
            text = with_tables(document.read_text(encoding="utf-8"), measured)
        except ValueError as error:
            sys.exit(f"{path}: {error}")
        document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
