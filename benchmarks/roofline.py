"""What the kernels of ``method="triton"`` would take on a GPU that did nothing but what it must.

    python benchmarks/roofline.py --json build/roofline.json

Nothing is run: bytes, operations and powers of each kernel are counted, and divided by what the data
sheets promise. The slowest of them is the least time that a kernel can take. The textbook version is
counted operation by operation on tensors without numbers. tests/benchmarks/test_roofline.py compares
the counts with those of the interpreter.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from attention_kl import CASES, Inputs, naive
from measure import table
from torch.utils._python_dispatch import TorchDispatchMode

from distillkit.losses._tiled._triton.geometry import Geometry, block_of, candidates


class Machine(NamedTuple):
    """What a data sheet promises, each per second."""

    name: str
    half: float  # operations of matrix products in bfloat16, without sparsity
    full: float  # the same of float32 products as the kernels make them
    plain: float  # the same as torch makes them by default
    powers: float
    bytes: float  # of memory
    hip: bool = False


# NVIDIA A100 80GB SXM and H100 SXM, AMD MI300X: the vendors' data sheets. Powers: 16 results for each
# clock and multiprocessor (CUDA programming guide, throughput of arithmetic instructions), and a
# quarter of the lanes on AMD, at the highest clock. A float32 product on NVIDIA takes three of TF32.
MACHINES = [
    Machine("A100", 312e12, 156e12 / 3, 19.5e12, 16 * 108 * 1.41e9, 2.039e12),
    Machine("H100", 989e12, 494e12 / 3, 67e12, 16 * 132 * 1.98e9, 3.35e12),
    Machine("MI300X", 1307e12, 163e12, 163e12, 16 * 304 * 2.1e9, 5.3e12, hip=True),
]


class Shape(NamedTuple):
    """Batch, heads, rows, keys, width of both sides."""

    b: int
    h: int
    n: int
    m: int
    d: int


class Count(NamedTuple):
    """What one kernel does."""

    operations: int  # of matrix products
    powers: int
    read: int  # bytes that programs ask for, most of them from a cache
    written: int
    memory: int  # bytes that must come from memory or go there


def kernel_counts(shape: Shape, bytes_each: int, tiles: dict[str, Geometry]) -> dict[str, Count]:
    """The counts of the three kernels for a forward KL and the student's gradients, no masks."""
    b, h, n, m, d = shape
    heads = b * h
    block = block_of(d)
    both = 2 * d * bytes_each  # a vector of each side
    row = 4 * 4 + 4 + 4  # statistics, the slope's constant and the weight of a row
    found = {}
    for step in ("values", "queries", "keys"):
        tile = tiles[step]
        row_blocks, key_blocks = -(-n // tile.rows), -(-m // tile.keys)
        scores = heads * row_blocks * tile.rows * key_blocks * tile.keys
        products = 2 if step == "values" else 3
        powers = 2 * scores
        vectors = heads * (n + m) * both
        if step == "values":
            powers += 3 * heads * row_blocks * tile.rows * key_blocks  # moves of the maxima
            read = heads * (n + row_blocks * m) * both
            written = heads * n * 7 * 4
        elif step == "queries":
            read = heads * ((n + row_blocks * m) * both + n * row)
            written = heads * n * d * bytes_each
        else:
            read = heads * ((m + key_blocks * n) * both + key_blocks * n * row)
            written = heads * m * d * bytes_each
        rows = 0 if step == "values" else heads * n * row
        memory = vectors + written + rows
        found[step] = Count(2 * products * scores * block, powers, read, written, memory)
    return found


def tiles_for(shape: Shape, bytes_each: int, *, hip: bool = False) -> dict[str, Geometry]:
    """The tiles that a launch takes."""
    width = block_of(shape.d)
    return {x: candidates(x, width, bytes_each, hip=hip)[0] for x in ("values", "queries", "keys")}


def least_seconds(count: Count, machine: Machine, bytes_each: int) -> tuple[float, str]:
    """The least time of a kernel, and what it is bound by."""
    peak = machine.half if bytes_each == 2 else machine.full
    bounds = {
        "products": count.operations / peak,
        "powers": count.powers / machine.powers,
        "memory": count.memory / machine.bytes,
    }
    slowest = max(bounds, key=bounds.__getitem__)
    return bounds[slowest], slowest


class Work(TorchDispatchMode):
    """Bytes and products of every operation of torch, on tensors without numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[int, int]] = []  # bytes, operations of products

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if not function.is_view and found is not NotImplemented:
            tensors = list(_tensors([*args, found]))
            size = sum(_held(x) for x in tensors)
            products = 0
            if function in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
                products = 2 * args[0].numel() * args[1].shape[-1]
            self.operations.append((size, products))
        return found


def _tensors(values) -> Iterator[torch.Tensor]:
    for x in values:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from _tensors(x)


def _held(x: torch.Tensor) -> int:
    """Bytes of a tensor, an expanded axis once."""
    size = x.element_size()
    for length, stride in zip(x.shape, x.stride(), strict=True):
        size *= length if stride else 1
    return size


def naive_work(shape: Shape, dtype: torch.dtype) -> tuple[list[tuple[int, int]], int]:
    """The operations of the textbook version, and how many of them are its forward."""
    b, h, n, m, d = shape
    make = {"dtype": dtype, "device": "meta"}
    student = [torch.empty(b, h, x, d, **make, requires_grad=True) for x in (n, m)]
    teacher = [torch.empty(b, h, x, d, **make) for x in (n, m)]
    with Work() as work:
        loss = naive(Inputs(*student, *teacher, None, None))
        forward = len(work.operations)
        loss.backward()
    return work.operations, forward


def naive_seconds(shape: Shape, machine: Machine, dtype: torch.dtype) -> tuple[float, float]:
    """The least time of its forward and of its backward."""
    peak = machine.half if dtype.itemsize == 2 else machine.plain
    operations, forward = naive_work(shape, dtype)
    each = [max(size / machine.bytes, products / peak) for size, products in operations]
    return sum(each[:forward]), sum(each[forward:])


def tables() -> dict[str, str]:
    """A table for each dtype, and what each kernel does for each score."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        rows = [
            _row(case.name, Shape(*case.shape), machine, dtype)
            for case in CASES
            for machine in MACHINES
        ]
        header = [
            "shape",
            "GPU",
            "forward",
            "backward",
            "bound by",
            "of naive's forward",
            "of naive's backward",
        ]
        title = str(dtype).removeprefix("torch.")
        found[f"{title}, least microseconds, and the part of naive's least time"] = table(
            header, rows
        )
    rows = []
    for case in CASES:
        shape = Shape(*case.shape)
        scores = shape.b * shape.h * shape.n * shape.m
        counts = kernel_counts(shape, 2, tiles_for(shape, 2))
        size = sum(x for x, _ in naive_work(shape, torch.bfloat16)[0])
        rows.append([
            case.name, *(f"{x.operations / scores:.0f}" for x in counts.values()),
            *(f"{x.memory / scores:.2f}" for x in counts.values()), f"{size / scores:.0f}",
        ])  # fmt: skip
    steps = ("values", "queries", "keys")
    header = [
        "shape",
        *(f"{x}, operations" for x in steps),
        *(f"{x}, bytes" for x in steps),
        "naive, bytes",
    ]
    found["bfloat16, operations of products and bytes of memory for each score"] = table(
        header, rows
    )
    return found


def _row(name: str, shape: Shape, machine: Machine, dtype: torch.dtype) -> list[str]:
    tiles = tiles_for(shape, dtype.itemsize, hip=machine.hip)
    counts = kernel_counts(shape, dtype.itemsize, tiles)
    times = {x: least_seconds(count, machine, dtype.itemsize) for x, count in counts.items()}
    forward, backward = times["values"][0], times["queries"][0] + times["keys"][0]
    theirs = naive_seconds(shape, machine, dtype)
    bounds = list(dict.fromkeys(bound for _, bound in times.values()))
    return [
        name, machine.name, f"{1e6 * forward:.1f}", f"{1e6 * backward:.1f}", ", ".join(bounds),
        f"{forward / theirs[0]:.3f}", f"{backward / theirs[1]:.3f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the tables here")
    options = parser.parse_args()
    found = tables()
    for title, one in found.items():
        print(f"\n{title}\n\n{one}")
    if options.json:
        content = {
            "machine": "no machine; counted, and divided by what data sheets promise",
            "benchmark": "roofline",
            "device": "cpu",
            "tables": found,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
