"""Compile the kernels for GPUs that are not here, and read what they need from the binary.

    python -m tools.kernel_resources --only plain --json build/kernel_resources.json
    python -m tools.performance_tables build/kernel_resources.json

Every tile that a launch may take is compiled by the compiler and the assembler of triton's wheel.
Nothing is run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")
STEPS = ("values", "queries", "keys")
WIDTHS = (16, 32, 64, 128, 256)
DTYPES = ("bfloat16", "float32")
# no mask, all that a call can have at once, and one of everything (a size of 1 becomes a constant)
FORMS = ("plain", "everything", "single")
CLASSES = 32_000


class Work(NamedTuple):
    """One kernel to compile."""

    target: str
    step: str
    width: int
    dtype: str
    form: str
    number: int  # of the candidate


def works(targets: list[str]) -> Iterator[Work]:
    """Every kernel with every tile that it may be launched with."""
    from distillkit.losses._tiled._triton.geometry import candidates

    for target, step, width, dtype, form in itertools.product(
        targets, STEPS, WIDTHS, DTYPES, FORMS
    ):
        found = candidates(step, width, 2 if dtype == "bfloat16" else 4, hip=is_hip(target))
        for number in range(len(found)):
            yield Work(target, step, width, dtype, form, number)
    for target, form in itertools.product(targets, FORMS):
        yield Work(target, "logits", CLASSES, "float32", form, 0)  # always sums of float32


def is_hip(target: str) -> bool:
    return target.startswith("hip")


def resources(work: Work) -> dict[str, Any]:
    """What the kernel needs of a multiprocessor."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    backend_name, _, arch = work.target.partition(":")
    target = GPUTarget("hip", arch, 64) if is_hip(work.target) else GPUTarget("cuda", int(arch), 32)
    one = launch(work)
    backend = make_backend(target)
    kernel = one.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    given = dict(one.options)
    bound, specialization, _ = bind(**one.arguments, **given)
    options, signature, constants, attributes = kernel._pack_args(
        backend, given, bound, specialization, given
    )
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = compile_kernel(source, target=target, options=options.__dict__)
    found = (
        of_cubin(compiled.asm["cubin"])
        if backend_name == "cuda"
        else of_amdgcn(compiled.asm["amdgcn"])
    )
    return {
        **work._asdict(),
        "tile": list(one.geometry),
        "shared": compiled.metadata.shared,
        **found,
    }


def launch(work: Work) -> Any:
    """The launch, with tensors in place of those of a GPU: only their types are compiled."""
    if work.step == "logits":
        return launch_of_logits(everything=work.form == "everything")
    import torch

    from distillkit.losses._tiled._triton import attention
    from distillkit.losses._tiled._triton.geometry import candidates
    from distillkit.losses._tiled.comparison import Kind, Leaves, Pair, Side, Sides

    dtype = getattr(torch, work.dtype)
    b, h, g, q, k = (1,) * 5 if work.form == "single" else (2, 4, 2, 48, 80)
    d = work.width
    everything = work.form == "everything"

    def side() -> Side:
        query = torch.empty(b, q, h, d, dtype=dtype).transpose(1, 2)
        key = torch.empty(b, k, g, d, dtype=dtype).transpose(1, 2)
        if not everything:
            return Side(query, key, None, None, 1.0)
        mask = torch.ones(b, 1, q, k, dtype=torch.bool)
        return Side(query, key, torch.zeros(1, h, q, k, dtype=dtype), mask, 1.0, causal=True)

    rows = None if work.form == "plain" else torch.ones(b, 1, q, dtype=torch.bool)
    pair = Pair(side(), side(), rows, Kind("jsd" if everything else "kl"))
    hip = is_hip(work.target)
    tile = candidates(work.step, work.width, dtype.itemsize, hip=hip)[work.number]
    value = torch.empty(b, h, q)
    statistics = torch.empty(6 * value.numel())
    if work.step == "values":
        made = attention.value_launches(pair, value, statistics, tile, hip=hip)
    else:
        gradients = Leaves(
            torch.empty(pair.student.query.shape, dtype=dtype) if work.step == "queries" else None,
            torch.empty(pair.student.key.shape, dtype=dtype) if work.step == "keys" else None,
            None,
        )
        found = Sides(gradients, Leaves(None, None, None))
        made = attention.slope_launches(pair, statistics, value, found, tile, hip=hip)
    return next(iter(made))


def launch_of_logits(*, everything: bool) -> Any:
    """The launch for a chunk of logits."""
    import torch

    from distillkit.losses._tiled._triton import logits
    from distillkit.losses._tiled.comparison import Kind, Sides

    chunk = Sides(*(torch.empty(2, CLASSES) for _ in range(2)))
    keeps = Sides(
        *(torch.ones(CLASSES, dtype=torch.bool) if everything else None for _ in range(2))
    )
    kind = Kind("jsd" if everything else "kl")
    return logits.launch_for(kind, chunk, keeps, Sides(student=True, teacher=everything))


def of_cubin(cubin: bytes) -> dict[str, int]:
    """Registers for each thread, and bytes that did not fit into them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        )
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout))
    return {"registers": int(usage["REG"]), "spilled": int(usage["STACK"]) + int(usage["LOCAL"])}


def of_amdgcn(text: str) -> dict[str, int]:
    """The same of a kernel for AMD, from the notes in its assembly."""

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        assert found is not None, f"no {name} in the assembly"
        return int(found[1])

    spills = number("vgpr_spill_count") + number("sgpr_spill_count")
    return {"registers": number("vgpr_count") + number("agpr_count"), "spilled": spills}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=" ".join(TARGETS))
    parser.add_argument("--only", default="", help="kernels whose description contains this")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 interprets kernels: unset it to compile them")
    todo = [x for x in works(options.targets) if options.only in describe(x)]
    with ProcessPoolExecutor(options.processes) as pool:
        found = list(pool.map(resources, todo))
    for one in found:
        print(
            f"{describe(Work(*(one[x] for x in Work._fields)))} {one['tile']}: "
            f"{one['registers']} registers, {one['spilled']} spilled, {one['shared']} shared"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": "no machine; compiled by triton " + triton_version(),
            "benchmark": "kernel_resources",
            "device": "cpu",
            "tables": tables(found),
            "cases": found,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tables(found: list[dict[str, Any]]) -> dict[str, str]:
    """Registers, bytes spilled and KiB of shared memory of every tile, by target."""
    chosen = {}
    for one in found:
        key = one["step"], one["dtype"], one["width"], "x".join(map(str, one["tile"])), one["form"]
        text = f"{one['registers']}, {one['spilled']}, {one['shared'] / 1024:.0f}"
        chosen.setdefault(key, {})[one["target"]] = text
    targets = list(dict.fromkeys(one["target"] for one in found))
    header = ["kernel", "dtype", "width", "tile", *targets]
    lines = [header, ["---"] * len(header)]
    for (step, dtype, width, tile, form), by_target in chosen.items():
        name = step if form == "plain" else f"{step}, {form}"
        lines.append([name, dtype, str(width), tile, *(by_target.get(x, "") for x in targets)])
    title = "Registers of a thread, what did not fit into them, KiB of shared memory"
    return {title: "\n".join("| " + " | ".join(line) + " |" for line in lines)}


def triton_version() -> str:
    from importlib.metadata import version

    return version("triton")


def describe(work: Work) -> str:
    return " ".join(map(str, work))


if __name__ == "__main__":
    main()
