"""Memory of a whole distiller step over a vocabulary of 32k, with logits and without.

    python benchmarks/response_memory.py --json response_memory.json

Both recipes compare the same distributions at the tokens of the response; one takes them from
logits, the other from what goes into the output projections. Gradients are included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from measure import arguments, compare, report, table
from torch import Tensor

import distillkit as dk

CLASSES = 32_000
ADAPTER = dk.DeclarativeAdapter(
    streams={"text": "model.layers.*.self_attn"},
    inputs={"input_ids": "input_ids", "attention_mask": "attention_mask"},
    logits="logits",
    tokens={"text": [{"modality": "text", "length": "input_ids", "mask": "attention_mask"}]},
)
TERMS = {
    "logits.response": dk.Term("kl_divergence", on="logits.response"),
    "head.input.response": dk.Term(
        "linear_kl_divergence", on=["head.input.response", "head.weight"]
    ),
}


def decoder(width: int) -> hf.LlamaForCausalLM:
    config = hf.LlamaConfig(
        vocab_size=CLASSES, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


def prompts(length: int, device: str) -> dict[str, Tensor]:
    """Two prompts, the last half of which is the response."""
    ids = torch.randint(5, CLASSES, (2, length), device=device)
    labels = ids.clone()
    labels[:, : length // 2] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def step_of(distiller: dk.Distiller, batch: dict[str, Tensor]) -> Callable[[], Any]:
    return lambda: distiller(batch).loss.backward()


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student, teacher = decoder(64).to(options.device), decoder(128).to(options.device)
    rows, figures = [], {}
    for length in (256, 512):
        case = f"2 x {length} tokens, 32k"
        if options.only not in case:
            continue
        batch = prompts(length, options.device)
        steps = {}
        for name, term in TERMS.items():
            distiller = dk.Distiller(
                student, teacher, dk.Objective([term]), student_adapter=ADAPTER,
                teacher_adapter=ADAPTER,
            )  # fmt: skip
            steps[name] = step_of(distiller, batch)
            steps[name]()  # what is remembered of the models

        found = compare(steps, options.rounds or 3, options.device, student.zero_grad)
        figures[case] = found
        for name, one in found.items():
            memory = f"{one['peak'] / 2**20:.0f} MiB"
            rows.append([case, f"`{name}`", f"{one['wall']:.2f} s", memory])
    tables = {"A step of a distiller": table(["batch", "signal", "step", "peak"], rows)}
    report(options, "response_memory", tables, figures)


if __name__ == "__main__":
    main()
