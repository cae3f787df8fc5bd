"""What distillation costs on many GPUs, in bytes: the tables of docs/explanation/scale.md.

    python tools/scale_table.py docs/explanation/scale.md

Counts, not measurements: bytes of parameters, and what a ring of collectives sends. Activations of
the student are left out, since they are those of training it without a teacher.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

GIB, GB = 2**30, 10**9
HALF, FULL = 2, 4  # bytes of bf16 and of float32
TRAINED = FULL + FULL + 2 * FULL  # a parameter in float32, its gradient, both moments of Adam


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, and what is compared for each example.

    Attributes:
        teacher: its parameters.
        student: its parameters, all of them learned.
        rows: queries that are compared, padding included.
        keys: keys of each of them.
        heads: heads that are compared.
        width: of a query or key of one head.
        classes: of the logits, for each position.
        positions: with logits that are compared.
    """

    teacher: float = 7e9
    student: float = 2e9
    rows: int = 256
    keys: int = 576
    heads: int = 32
    width: int = 128
    classes: int = 32_000
    positions: int = 256


def ring(gpus: int) -> float:
    """The part of a tensor that each GPU sends to gather it, or to reduce it into parts."""
    return (gpus - 1) / gpus


def memory(pair: Pair, gpus: int) -> dict[str, float]:
    """Bytes on each GPU."""
    return {
        "student under DDP: float32, gradient, Adam": pair.student * TRAINED,
        "student under FSDP2": pair.student * TRAINED / gpus,
        "teacher replicated, bf16": pair.teacher * HALF,
        "teacher replicated, 4 bits": pair.teacher / 2,
        "teacher sharded by FSDP2, bf16": pair.teacher * HALF / gpus,
    }


def traffic(pair: Pair, gpus: int) -> dict[str, float]:
    """Bytes that each GPU sends in one step."""
    gathered = pair.student * HALF * ring(gpus)
    return {
        "student under DDP: gradients, all-reduce": 2 * pair.student * FULL * ring(gpus),
        "student under FSDP2: gathered twice, gradients reduced": 2 * gathered
        + pair.student * FULL * ring(gpus),
        "teacher replicated": 0.0,
        "teacher sharded: gathered once, no backward": pair.teacher * HALF * ring(gpus),
        "distillation itself: the count of each term": 8.0,
    }


def examples(pair: Pair) -> dict[str, float]:
    """Bytes that are held for one example and one layer, beside the student's activations."""
    tokens = pair.rows + pair.keys
    return {
        "teacher's queries and keys, bf16": 2 * tokens * pair.heads * pair.width * HALF,
        "attention as a map, both sides, float32": 2 * pair.rows * pair.keys * pair.heads * FULL,
        "attention blockwise: a row's maximum and sum, both sides": 4
        * pair.rows
        * pair.heads
        * FULL,
        "logits of both sides, float32": 2 * pair.positions * pair.classes * FULL,
        "logits that never exist (`linear_kl_divergence`)": 4 * pair.positions * FULL,
    }


def table(title: str, columns: dict[str, dict[str, float]], unit: tuple[str, float]) -> str:
    """A table with a row for each thing that is counted."""
    name, size = unit
    lines = [f"| {title} ({name}) | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for row in next(iter(columns.values())):
        cells = [f"{column[row] / size:,.2f}" for column in columns.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(pair: Pair | None = None) -> dict[str, str]:
    """The tables by the names that the document has for them."""
    pair = pair or Pair()
    sizes = (8, 256)
    return {
        "memory": table(
            "memory of a GPU", {f"{n} GPUs": memory(pair, n) for n in sizes}, ("GiB", GIB)
        ),
        "traffic": table(
            "sent by a GPU in a step", {f"{n} GPUs": traffic(pair, n) for n in sizes}, ("GB", GB)
        ),
        "examples": table("one example, one layer", {"any": examples(pair)}, ("MiB", 2**20)),
    }


def written(text: str) -> str:
    """The document with its tables made again."""
    made = tables()

    def block(found: re.Match[str]) -> str:
        return f"<!-- begin {found[1]} -->\n\n{made[found[1]]}\n\n<!-- end {found[1]} -->"

    return re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
