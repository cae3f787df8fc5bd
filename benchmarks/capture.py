"""What capture costs in a training step, next to the other ways to get at attention.

Every round runs one step of each variant, in an order drawn anew; a ratio is the median over
rounds of a variant's time to that of the plain step of the same round, so that a slow spell of
the machine falls on all. The first variant is the plain step a second time: what the measurement
itself can see.

    python benchmarks/capture.py                    # the model and sizes of the documentation
    python benchmarks/capture.py --device cuda --json out.json
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import distillkit as dk

warnings.filterwarnings("ignore")
import transformers  # noqa: E402

Step = Callable[[], None]


def model_of(
    implementation: str, device: str, *, tokens: int, layers: int, width: int
) -> nn.Module:
    """A BERT without dropout."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=width, num_hidden_layers=layers, num_attention_heads=8,
        intermediate_size=4 * width, max_position_embeddings=tokens, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config._attn_implementation = implementation  # noqa: SLF001 (the public way needs files)
    return transformers.BertModel(config).to(device)


def batch_of(device: str, *, examples: int, tokens: int) -> dict[str, Tensor]:
    """Ids, of which the first example has some padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (examples, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, tokens - 20 :] = 0
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


@contextlib.contextmanager
def hooks(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Forward hooks that keep what the query and key projections return."""
    kept: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(
            lambda _, __, output, name=name: kept.__setitem__(name, output)
        )
        for name, module in model.named_modules()
        if name.endswith((".query", ".key"))
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def steps(model: nn.Module, eager: nn.Module, batch: dict[str, Tensor]) -> dict[str, Step]:
    """A forward and backward in each way; what was recorded lives until the backward is over."""
    pattern = "encoder.layer.*.attention.self"

    def run(of: nn.Module, **options: bool) -> Any:
        of.zero_grad(set_to_none=True)
        output = of(**batch, **options)
        output.last_hidden_state.square().mean().backward()
        return output

    def plain() -> None:
        run(model)

    def captured() -> None:
        with dk.capture(model, pattern) as record:
            run(model)
            assert len(record.names) == len(model.encoder.layer)

    def captured_everywhere() -> None:
        with dk.capture(model):
            run(model)

    def captured_detached() -> None:
        with dk.capture(model, pattern, detach=True):
            run(model)

    def hooked() -> None:
        with hooks(model) as kept:
            run(model)
            assert len(kept) == 2 * len(model.encoder.layer)

    def official() -> None:
        assert run(eager, output_attentions=True).attentions is not None

    def consumed() -> None:
        model.zero_grad(set_to_none=True)
        with dk.capture(
            model, f"encoder.layer.{len(model.encoder.layer) - 1}.attention.self"
        ) as record:
            output = model(**batch)
            (name,) = record.names
            loss = record[name].probabilities().square().mean()
        (output.last_hidden_state.square().mean() + loss).backward()

    return {
        "plain again (what can be seen)": plain,
        "capture, every layer": captured,
        "capture, no pattern": captured_everywhere,
        "capture, detached": captured_detached,
        "forward hooks on query and key": hooked,
        "output_attentions=True, eager": official,
        "capture, a loss on the last layer": consumed,
        "plain": plain,
    }


def timed(step: Step, device: str) -> float:
    """Seconds of one step."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(variants: dict[str, Step], device: str, rounds: int) -> dict[str, list[float]]:
    """Per variant, its time in each round over that of the plain step."""
    for step in variants.values():  # warm up
        step()
        step()
    order = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        times = {}
        for name in order.sample(list(variants), len(variants)):
            times[name] = timed(variants[name], device)
        for name, seconds in times.items():
            found[name].append(seconds / times["plain"])
    return found


def peak(step: Step, device: str, *models: nn.Module) -> int:
    """The largest number of bytes alive at once during a step, beyond those before it."""
    step()
    for model in models:
        model.zero_grad(set_to_none=True)
    gc.collect()  # what an earlier step left behind is not freed in this one
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    gc.disable()
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    gc.enable()
    alive = highest = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        highest = max(highest, alive)
    return highest


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both implementations, all variants."""
    sizes = {"tokens": options.tokens, "layers": options.layers, "width": options.width}
    batch = batch_of(options.device, examples=options.examples, tokens=options.tokens)
    tables: dict[str, Any] = {}
    for implementation in ("sdpa", "eager"):
        eager = model_of("eager", options.device, **sizes)
        model = model_of(implementation, options.device, **sizes)
        variants = steps(model, eager, batch)
        found = ratios(variants, options.device, options.rounds)
        memory = {name: peak(step, options.device, model, eager) for name, step in variants.items()}
        tables[implementation] = {
            name: {
                "ratio": statistics.median(values),
                "quartiles": statistics.quantiles(values, n=4)[::2],
                "peak_bytes": memory[name],
                "peak_ratio": memory[name] / memory["plain"],
            }
            for name, values in found.items()
            if name != "plain"
        }
    return {
        **sizes,
        "examples": options.examples,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "map_bytes": 4 * options.examples * 8 * options.tokens**2,
        "steps": tables,
    }


def shown(result: dict[str, Any]) -> str:
    """The numbers as a table."""
    sizes = (
        f"{result['layers']} layers, hidden {result['width']}, {result['tokens']} tokens, "
        f"{result['examples']} examples, on {result['machine']}; median of {result['rounds']} "
        f"paired steps; one map of all heads is {result['map_bytes'] / 2**20:.1f} MiB"
    )
    lines = [sizes]
    for implementation, rows in result["steps"].items():
        lines.append(f"\n{implementation:36} time   (quartiles)       peak memory")
        for name, row in rows.items():
            low, high = row["quartiles"]
            lines.append(
                f"  {name:34} {row['ratio']:5.3f}  ({low:.3f} - {high:.3f})"
                f"   {row['peak_bytes'] / 2**20:7.1f} MiB  {row['peak_ratio']:5.3f}"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options)
    sys.stdout.write(shown(result) + "\n")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
