"""Write docs/reference/families.md: every family of transformers, what it offers, what is absent.

    python -m tools.family_table

Every family's tiny models are held to the adapter kit, which takes a minute. The tests of the
plugin hold each line to what they see.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs/reference/families.md"
_TESTS = "plugins.distillkit-transformers.tests"  # the folder's name is no identifier


def main() -> None:
    """Write the tables."""
    family_table = importlib.import_module(f"{_TESTS}.family_table")
    uncovered = importlib.import_module(f"{_TESTS}.uncovered")
    head = [f"| {' | '.join(row)} |" for row in (family_table.HEAD, ["---"] * 6)]
    blocks = {
        "families": [*head, *map(family_table.line, sorted(family_table.SPECS))],
        "uncovered": uncovered.lines(),
    }
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, lines in blocks.items():
        block = "\n".join([f"<!-- begin {name} -->", "", *lines, "", f"<!-- end {name} -->"])
        text = re.sub(
            rf"<!-- begin {name} -->.*<!-- end {name} -->", lambda _, b=block: b, text,
            flags=re.DOTALL,
        )  # fmt: skip
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
