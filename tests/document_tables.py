"""Write the tables of the documentation from the data of code and tests.

    python tests/document_tables.py

A table lies between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; a test holds the documents
to what is written here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "docs/how-to/prove-your-loss.md",
    "docs/explanation/losses.md",
    "docs/reference/losses.md",
)


def table(head, rows):
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def checks():
    from distillkit import LossSpec, testing

    def chosen_by(check):
        def applies(**declared):
            spec = LossSpec("x", lambda s, t: s, signature="(v),(v)->()", **declared)
            return check in testing.checks_for(spec)

        if applies():
            return "every loss"
        tags = [f"tag `{tag}`" for tag in testing.TAGS if applies(tags=(tag,))]
        if applies(bound=1.0):
            return "`bound=`"
        arguments = {"where": "an argument `where`", "option_bounds": "options with bounds"}
        return tags[0] if tags else arguments[check.name]

    rows = [(f"`{c.name}`", c.summary, chosen_by(c)) for c in testing.CHECKS]
    return table(["check", "what it asks", "chosen by"], rows)


def faults():
    from planted_faults import FAULTS

    rows = [(fault.what, f"`{fault.caught_by}`") for fault in FAULTS]
    return table(["planted fault", "caught by"], rows)


def defects():
    from peer_defects import DEFECTS

    return table(["number", "what went wrong"], DEFECTS.items())


def specs():
    from distillkit import LossSpec
    from distillkit._plugins.registry import provided

    found = [by["distillkit"] for by in provided(LossSpec).values() if "distillkit" in by]
    rows = [
        (
            f"`{spec.name}`",
            f"`{spec.signature}`",
            spec.summary,
            ", ".join(spec.tags) + (f", at most {spec.bound:.4g}" if spec.bound else ""),
        )
        for spec in found
    ]
    return table(["loss", "shapes", "what it compares", "what the kit holds it to"], rows)


TABLES = {"checks": checks, "faults": faults, "defects": defects, "losses": specs}


def written(text):
    """A document with its tables as they should be."""

    def block(match):
        return f"<!-- begin {match[1]} -->\n\n{TABLES[match[1]]()}\n\n<!-- end {match[1]} -->"

    return re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
