"""Interleaved runs in one process, their peaks of memory, and tables of them.

The machine is never quiet enough for absolute times: every figure is a ratio to the first
implementation in the same round, A B C A B C ..., and the median of those is what is printed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

KEPT_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(1 << 34), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
"""With these glibc keeps the memory that it once had, and no large tensor costs page faults."""

Step = Callable[[], object]


def arguments(description: str, *, examples: int | None = None) -> argparse.Namespace:
    """The command line that all benchmarks share; ``examples``: how many, where one may say so."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=0, help="0: by the size of the work")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write tables and figures here")
    parser.add_argument("--quick", action="store_true", help="few rounds, no second allocator")
    parser.add_argument("--in-kept-pages", action="store_true", help=argparse.SUPPRESS)
    if examples is not None:
        parser.add_argument("--examples", type=int, default=examples)
    return parser.parse_args()


def machine(device: str) -> str:
    """Where it was measured, in words."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            x for x in info.read_text(encoding="utf-8").splitlines() if x.startswith("model name")
        ]
        model = names[0].partition(":")[2].strip() if names else model
        if "bf16" not in info.read_text(encoding="utf-8"):  # avx512_bf16, amx_bf16; of ARM, bf16
            model += " (which multiplies no bfloat16)"
    load = os.getloadavg()[0]
    return f"{model}, one thread, torch {torch.__version__}, load {load:.1f} at the start"


def compare(
    steps: Mapping[str, Step], rounds: int, device: str, before: Step
) -> dict[str, dict[str, float]]:
    """Name -> median seconds of wall clock and CPU, their ratios to the first, peak in bytes.

    ``before`` every step, untimed: it takes the last step's gradients away.
    """
    peaks = {}
    for name, step in steps.items():
        step()  # compilers compile, allocators grow
        before()
        peaks[name] = peak(step, device)
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    for _ in range(rounds):
        for name, step in steps.items():
            before()
            seconds, busy = timed(step, device)
            wall[name].append(seconds)
            cpu[name].append(busy)
    first = next(iter(steps))
    return {
        name: {
            "wall": statistics.median(wall[name]),
            "cpu": statistics.median(cpu[name]),
            "wall_ratio": _ratio(wall[name], wall[first]),
            "cpu_ratio": _ratio(cpu[name], cpu[first]),
            "fastest": min(cpu[name]) / min(cpu[first]),
            "peak": peaks[name],
            "peak_ratio": peaks[name] / peaks[first],
        }
        for name in steps
    }


def timed(step: Step, device: str) -> tuple[float, float]:
    """Seconds of one step: by the clock, and of the processor; on a GPU its own, twice."""
    if device == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        stop.record()
        torch.cuda.synchronize()
        seconds = start.elapsed_time(stop) / 1000
        return seconds, seconds
    clock, busy = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - clock, time.process_time() - busy


def peak(step: Step, device: str) -> int:
    """The most memory that a step holds above what was held before it, gradients included."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def in_kept_pages(options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """The same command in a process whose allocator keeps its pages."""
    if options.quick or options.in_kept_pages or options.device != "cpu":
        return {}
    with_pages = [sys.executable, *sys.argv, "--in-kept-pages", "--json", "/dev/stdout"]
    environment = {**os.environ, **KEPT_PAGES}
    done = subprocess.run(with_pages, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["cases"]


def report(
    options: argparse.Namespace, name: str, tables: Mapping[str, str], figures: object
) -> None:
    """Print the tables; write them, and all figures, where ``--json`` says."""
    if options.in_kept_pages:
        print(json.dumps({"cases": figures}))
        return
    where = machine(options.device)
    for title, table in tables.items():
        print(f"\n{title}\n\n{table}")
    if options.json:
        content = {
            "machine": where,
            "benchmark": name,
            "device": options.device,
            "tables": dict(tables),
            "cases": figures,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def _ratio(mine: list[float], first: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, first, strict=True))
