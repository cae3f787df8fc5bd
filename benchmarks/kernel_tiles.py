"""Every tile that the kernels may take, measured on a GPU: which one should be first in the table.

    python benchmarks/kernel_tiles.py

The table is distillkit/losses/_tiled/_triton/geometry.py.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from attention_kl import CASES, ON_GPU, Case, inputs
from measure import machine, table, timed

from distillkit.losses._tiled._triton import attention
from distillkit.losses._tiled._triton.geometry import Geometry, block_of, candidates
from distillkit.losses._tiled.comparison import Kind, Leaves, Pair, Side, Sides

STEPS = ("values", "queries", "keys")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU to measure")
    print(f"Measured on: {machine(options.device)}.\n")
    rows = [
        [case.name, str(dtype).removeprefix("torch."), step, *map(str, tile), f"{found:.1f}"]
        for case in CASES + ON_GPU
        for dtype in (torch.bfloat16, torch.float32)
        for step in STEPS
        for tile, found in measured(case, dtype, step, options).items()
    ]
    print(table(["shape", "dtype", "kernel", *Geometry._fields, "microseconds"], rows))


def measured(case: Case, dtype: torch.dtype, step: str, options) -> dict[Geometry, float]:
    """The median microseconds of a kernel, by its tile."""
    x = inputs(case, dtype, options.device)
    scale = x.query.shape[-1] ** -0.5
    sides = [
        Side(query.detach(), key.detach(), None, x.keys, 1.0, scale)
        for query, key in ((x.query, x.key), (x.teacher_query, x.teacher_key))
    ]
    pair = Pair(*sides, x.rows, Kind("kl"))
    value = torch.zeros(pair.value_shape, device=options.device)
    statistics_of_rows = value.new_ones(6 * value.numel())
    gradients = Leaves(
        torch.empty_like(x.query) if step == "queries" else None,
        torch.empty_like(x.key) if step == "keys" else None,
        None,
    )
    found = {}
    hip = torch.version.hip is not None
    for tile in candidates(step, block_of(x.query.shape[-1]), dtype.itemsize, hip=hip):
        if step == "values":
            launches = attention.value_launches(pair, value, statistics_of_rows, tile)
        else:
            wanted = Sides(gradients, Leaves(None, None, None))
            launches = attention.slope_launches(pair, statistics_of_rows, value, wanted, tile)
        (launch,) = launches
        times = [
            timed(lambda launch=launch: launch.run(value), options.device)[0]
            for _ in range(options.rounds + 1)
        ]
        found[tile] = 1e6 * statistics.median(times[1:])  # the first one compiles
    return found


if __name__ == "__main__":
    main()
