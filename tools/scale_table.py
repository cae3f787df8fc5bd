"""What distillation costs on many GPUs, in bytes: the tables of docs/explanation/scale.md.

    python tools/scale_table.py docs/explanation/scale.md

Counts, not measurements: bytes of parameters, and what a ring of collectives sends. Activations of
the student are left out, since they are those of training it without a teacher. Of a signal cache,
what one example takes is what `benchmarks/signal_cache.py` measured; the rest is multiplied.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

GIB, GB = 2**30, 10**9
HALF, FULL = 2, 4  # bytes of bf16 and of float32
CODED = "`error=1e-3`: uint8, logits int8"
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


@dataclass(frozen=True)
class Stored:
    """A signal cache of a ViLT-B/32: one layer in both directions, and logits.

    Attributes:
        examples: how many.
        words: real ones of an example, in the mean.
        patches: of an example, with the first token.
        heads: that are stored.
        classes: of the logits.
        header: bytes of an example in the headers of shards.
        index: bytes of an example in the memory of a process.
        opening: seconds of an example when a cache is opened.
        reading: seconds of an example with ``error=1e-3``, when one process reads, checks and pads it.
    """

    examples: float = 1e9
    words: int = 9
    patches: int = 145
    heads: int = 12
    classes: int = 3129
    header: float = 125
    index: float = 265
    opening: float = 1e-6
    reading: float = 4.4e-4

    def bytes_of_example(self) -> dict[str, float]:
        """By how they are written."""
        scores = 2 * self.words * self.patches * self.heads
        return {
            "exact (float32)": scores * FULL + self.classes * FULL,
            "float16": scores * HALF + self.classes * HALF,
            CODED: scores + self.classes + FULL,
            "logits alone, 32 most probable": 32 * (FULL + HALF) + FULL,
        }


def files_of_cache(stored: Stored) -> str:
    """Bytes and files of a cache."""
    sizes = {"64 MiB": 2**26, "256 MiB": 2**28, "1 GiB": GIB}
    rows = []
    for coding, size in stored.bytes_of_example().items():
        whole = (size + stored.header) * stored.examples
        files = [f"{math.ceil(whole / one):,}" for one in sizes.values()]
        rows.append([coding, f"{size:,.0f}", f"{whole / 1e12:,.1f}", *files])
    header = ["what is written", "bytes of an example", "TB", *[f"files of {one}" for one in sizes]]
    return grid(header, rows)


def cost_of_cache(stored: Stored, parts: int) -> str:
    """What one process and one machine meet, of one cache and of one of many parts."""
    size = stored.bytes_of_example()[CODED] + stored.header
    rows: dict[str, list[str]] = {}

    def say(row: str, value: str) -> None:
        rows.setdefault(row, []).append(value)

    for count in (1, parts):
        examples = stored.examples / count
        files = math.ceil(examples * size / 2**28)
        say("examples", f"{examples:,.0f}")
        say("files of 256 MiB", f"{files:,}")
        say("index in the memory of each process", f"{examples * stored.index / GB:,.1f} GB")
        say("headers to read before the first example", f"{examples * stored.header / GB:,.1f} GB")
        say("processor's time to open it", duration(examples * stored.opening))
        say("requests to list an object store", f"{math.ceil(files / 1000):,}")
        say("requests for headers, when it is opened", f"{2 * files:,}")
        say("requests for its files, once", f"{files:,}")
        say("copied from it at 1 GB/s", duration(examples * size / GB))
        say("copied from it at 10 GB/s", duration(examples * size / (10 * GB)))
        say("an epoch from the disk at 3 GB/s", duration(examples * size / (3 * GB)))
        say("an epoch by one process", duration(examples * stored.reading))
        say("an epoch by 8 processes", duration(examples * stored.reading / 8))
    header = ["`error=1e-3`", "one cache", f"one of {parts} parts"]
    return grid(header, [[row, *values] for row, values in rows.items()])


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:,.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds / 3600:,.0f} h"


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


def grid(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def table(title: str, columns: dict[str, dict[str, float]], unit: tuple[str, float]) -> str:
    """A table with a row for each thing that is counted."""
    name, size = unit
    rows = [
        [row, *[f"{column[row] / size:,.2f}" for column in columns.values()]]
        for row in next(iter(columns.values()))
    ]
    return grid([f"{title} ({name})", *columns], rows)


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
        "cache_files": files_of_cache(Stored()),
        "cache_cost": cost_of_cache(Stored(), 256),
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
