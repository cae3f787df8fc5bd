"""Put what the benchmarks measured into docs/performance.md.

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

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"


def with_tables(text: str, measured: Mapping[str, Any]) -> str:
    """The document with the tables of one benchmark.

    Raises:
        ValueError: the document has no place for them.
    """
    name, device = measured["benchmark"], measured["device"]
    key = name if device == "cpu" else f"{name}-{device}"
    start, stop = f"<!-- {key} -->", f"<!-- end {key} -->"
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
    text = DOCUMENT.read_text(encoding="utf-8")
    for path in parser.parse_args().measured:
        try:
            text = with_tables(text, json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            sys.exit(f"{path}: {error}")
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
