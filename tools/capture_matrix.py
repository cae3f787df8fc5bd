"""Writes the table of what capture reads in which architecture.

python -m tools.capture_matrix --write docs/reference/capture-matrix.md
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import distillkit as dk
from distillkit.errors import CaptureError
from tests.support import witnesses, zoo

COLUMNS = (
    "architecture", "implementation", "attentions", "maps", "off by", "probabilities @ value off by",
    "gradient", "compiled", "notes",
)  # fmt: skip

INTRODUCTION = f"""# Capture matrix

What `dk.capture` reads in real architectures, and how far it is from what the model computed. Every
model is the real class of transformers {zoo.T.__version__} (torch {torch.__version__.split("+")[0]}), built from a tiny config with random
weights, its queries and keys made large so that no map is near-uniform, run on a padded batch.

This page is written by `python -m tools.capture_matrix --write docs/reference/capture-matrix.md`; the
same comparisons are tests, `tests/capture/test_matrix.py`.

- *implementation*: what transformers chose for the model and its parts.
- *attentions*: operations recorded, of those that one forward computes (counted by hand).
- *maps*: of the maps that the same weights return in eager under `output_attentions=True`, how many
  were found among the records; *off by*: the largest difference, over rows that see a key.
- *probabilities @ value off by*: the largest relative difference to the product that the dispatcher
  computed, a witness that needs no eager model.
- *gradient*: records whose probabilities reach the parameters of their module.
"""

COMPILED = """- *compiled*: records under `torch.compile` (registered before), and whether it is one graph; "alone"
  says how the model compiles without capture. Tracing takes a while, so only the architectures that
  vision-language distillation meets first are compiled; `--compile-all` compiles every one.
"""

COMPILED_FAMILIES = frozenset({
    "clip", "siglip", "siglip2", "vilt", "visual_bert", "flava", "lxmert", "bridgetower", "blip_itm",
    "blip_vqa", "blip2_opt", "llava", "paligemma", "qwen2_5_vl", "smolvlm",
    "vision_text_dual_encoder", "bert", "deberta_v2", "t5",
})  # fmt: skip


def row(name: str, *, compiled: bool) -> dict[str, str]:
    """One architecture."""
    family = zoo.FAMILIES[name]
    model, batch = zoo.build(name)
    found = dict.fromkeys(COLUMNS, "")
    found |= {
        "architecture": name,
        "implementation": implementation_of(model),
        "notes": family.note,
    }
    with witnesses.Products() as products:
        model(**batch)
    try:
        with dk.capture(model) as record:
            model(**batch)
        records = {module: record.calls(module) for module in record.names}
    except CaptureError as error:
        found["attentions"] = f"0 of {family.attentions}"
        found["notes"] = f"not read: {str(error)[:200]}"
        return found
    every = [attention for calls in records.values() for attention in calls]
    found["attentions"] = f"{len(every)} of {family.attentions}"
    found |= compared(name, records)
    found["probabilities @ value off by"] = number(
        [
            witnesses.distance_to_a_product(
                witnesses.mixed(attention), attention.valid_rows(), products.results
            )
            for attention in every
            if attention.value is not None
        ]
    )
    found["gradient"] = (
        f"{sum(reaches(model, m, a) for m in records for a in records[m])} of {len(every)}"
    )
    if compiled:
        found["compiled"] = compiled_records(name, len(every))
    return found


def implementation_of(model: nn.Module) -> str:
    """What transformers chose, for the model and its parts."""
    configs = (getattr(module, "config", None) for module in model.modules())
    chosen = {getattr(config, "_attn_implementation", None) for config in configs} - {None}
    return ", ".join(sorted(chosen, reverse=True))


def compared(name: str, records: dict[str, tuple[Any, ...]]) -> dict[str, str]:
    """With the maps of the same weights in eager."""
    family = zoo.FAMILIES[name]
    if family.eager_differs:
        return {"maps": "eager computes otherwise"}
    maps = witnesses.own_maps(*zoo.build(name, "eager"))
    off = sorted(witnesses.distance_to_a_map(one, records) for one in maps)
    count = len(maps) - family.other_maps
    matched = [distance for distance in off[:count] if distance <= witnesses.TOLERANCE]
    return {"maps": f"{len(matched)} of {count}", "off by": number(matched)}


def number(distances: list[float]) -> str:
    return f"{max(distances):.1e}" if distances else "-"


def reaches(model: nn.Module, module: str, attention: Any) -> bool:
    """Whether the probabilities depend on parameters of the module, or of the one around it."""
    modules = dict(model.named_modules())
    while not list(modules[module].parameters()):
        module = module.rpartition(".")[0]
    parameters = [p for p in modules[module].parameters() if p.requires_grad]
    if not attention.requires_grad:
        return False
    probabilities = attention.probabilities()
    loss = (
        probabilities * torch.linspace(-1, 1, probabilities.numel()).view_as(probabilities)
    ).sum()
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in found)


class Counter:
    """A backend that runs eagerly and counts the graphs it was given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def graphs(model: nn.Module, batch: dict[str, Any]) -> int | None:
    """How many graphs the compiler makes; None: it fails."""
    torch.compiler.reset()
    counter = Counter()
    # drawing inside forward is of the zoo, not of the model
    model._forward_pre_hooks.clear()
    with contextlib.suppress(Exception):
        torch.compile(model, backend=counter)(**batch)
        return counter.graphs
    return None


def compiled_records(name: str, expected: int) -> str:
    """Records in a compiled model, and its graphs with and without capture."""
    alone = graphs(*zoo.build(name))
    if alone is None:
        return "does not compile alone"
    model, batch = zoo.build(name)
    model._forward_pre_hooks.clear()
    try:
        with dk.capture(model) as record:
            made = graphs_keeping_hooks(model, batch)
            count = sum(len(record.calls(module)) for module in record.names)
    except CaptureError as error:
        return f"refused: {str(error)[:60]}"
    except Exception as error:  # the table says so, and the other rows are still made
        return f"fails: {type(error).__name__}"
    size = f"{made} graph{'s' if made != 1 else ''} (alone {alone})"
    return f"{count} of {expected}, {size}"


def graphs_keeping_hooks(model: nn.Module, batch: dict[str, Any]) -> int:
    torch.compiler.reset()
    counter = Counter()
    torch.compile(model, backend=counter)(**batch)
    return counter.graphs


def table(names: list[str], *, compiled: frozenset[str]) -> str:
    columns = [column for column in COLUMNS if compiled or column != "compiled"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name in names:
        cells = row(name, compiled=name in compiled)
        values = (cells[column].replace("|", "/") for column in columns)
        lines.append("| " + " | ".join(values) + " |")
        sys.stderr.write(lines[-1] + "\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=list(zoo.FAMILIES))
    parser.add_argument("--write", type=Path, help="the page to write; printed otherwise")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave that column out (it takes minutes)"
    )
    parser.add_argument("--compile-all", action="store_true", help="fill that column (an hour)")
    options = parser.parse_args()
    wanted = frozenset() if options.no_compile else COMPILED_FAMILIES
    wanted = frozenset(zoo.FAMILIES) if options.compile_all else wanted
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    compiled = "" if options.no_compile else COMPILED
    page = f"{INTRODUCTION}{compiled}\n{table(options.families, compiled=wanted)}\n"
    if options.write:
        options.write.write_text(page, encoding="utf-8")
    else:
        sys.stdout.write(page)


if __name__ == "__main__":
    main()
