"""Run by ``accelerate launch``: five whole steps on two ranks, by DDP and by what it makes FSDP2.

By DDP also in bf16, and with students that are checkpointed, compiled or given LoRA.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin, fsdp2_prepare_model
from torch import nn

import distillkit as dk
from tests.distributed import train_loops
from tests.distributed.leave import save_and_leave
from tests.loops.real_adapters import add_lora
from tests.support.students import TookEffect, checkpointing, computes_in_bf16


def train(accelerator: Accelerator, model: nn.Module, optimizer: Any, steps: range) -> list[float]:
    """The loss of each step, of two batches on each rank."""
    losses, rank = [], accelerator.process_index
    unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
    for step in steps:
        batches = train_loops.batches_of(step, rank)
        progress = step / train_loops.STEPS
        normalizer = unwrapped.normalizer(batches, progress=progress)
        total = torch.zeros(())
        for batch in batches:
            with accelerator.accumulate(model):
                loss = model(batch, progress=progress, normalizer=normalizer).loss
                # accelerate divides by the number of accumulated batches, a share is divided already
                accelerator.backward(loss * accelerator.gradient_accumulation_steps)
                total += loss.detach()
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), train_loops.LIMIT)
                    assert norm > train_loops.LIMIT
                optimizer.step()
                optimizer.zero_grad()
        losses.append(accelerator.reduce(total, "mean").item())
    return losses


def by_ddp(accelerator: Accelerator, folder: str) -> dict[str, Any]:
    """Straight on, and saved and loaded in the middle."""
    found = {}
    for name, cut in (("ddp", 0), ("ddp, resumed", train_loops.INTERRUPTED)):
        distiller = train_loops.distiller_of()
        model, optimizer = accelerator.prepare(distiller, train_loops.optimizer_of(distiller))
        losses = train(accelerator, model, optimizer, range(cut))
        if cut:
            accelerator.save_state(f"{folder}/state")
            accelerator.wait_for_everyone()
            with torch.no_grad():
                for parameter in distiller.parameters():
                    parameter.add_(1.0)
            accelerator.load_state(f"{folder}/state")
        losses += train(accelerator, model, optimizer, range(cut, train_loops.STEPS))
        found[name] = (losses, train_loops.weights_of(distiller))
        accelerator.free_memory()
        accelerator._models.clear()
        accelerator._optimizers.clear()
    return found


def by_fsdp2(accelerator: Accelerator, folder: str) -> dict[str, Any]:
    """As ``prepare`` shards on GPUs, where alone it does so by itself."""
    found = {}
    for efficient in (True, False):
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, cpu_ram_efficient_loading=efficient, reshard_after_forward=True,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["FusedAttention"],
        )  # fmt: skip
        distiller = train_loops.distiller_of()
        model = fsdp2_prepare_model(accelerator, distiller)
        optimizer = accelerator.prepare(train_loops.optimizer_of(model))
        losses = train(accelerator, model, optimizer, range(train_loops.STEPS))
        how = "loaded by rank 0" if efficient else "loaded by all"
        found[f"fsdp2, {how}"] = (losses, train_loops.weights_of(distiller))
    return found


def compiles(distiller: dk.Distiller) -> TookEffect:
    """What accelerate compiles itself."""
    del distiller
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    return lambda: torch._dynamo.utils.counters["frames"]["ok"] > 0


CHANGES: dict[str, tuple[dict[str, str], Callable[[dk.Distiller], TookEffect]]] = {
    "bf16": ({"mixed_precision": "bf16"}, lambda distiller: computes_in_bf16(distiller.student)),
    "checkpointing": ({}, checkpointing),
    "compile": ({"dynamo_backend": "eager"}, compiles),
    "PEFT": ({}, add_lora),
}
"""Options of accelerate, and what is done to the distiller, or looked at, before ``prepare``."""


def by_changes(accelerator: Accelerator, folder: str) -> dict[str, Any]:
    """By DDP, each with an accelerator of its own; its state is one for the process."""
    del accelerator, folder
    found: dict[str, Any] = {}
    for name, (options, change) in CHANGES.items():
        AcceleratorState._reset_state()
        own = Accelerator(cpu=True, gradient_accumulation_steps=2, **options)
        distiller = train_loops.distiller_of()
        took_effect = change(distiller)
        model, optimizer = own.prepare(distiller, train_loops.optimizer_of(distiller))
        try:
            losses = train(own, model, optimizer, range(train_loops.STEPS))
            assert took_effect(), f"{name} took no effect"
            found[f"ddp, {name}"] = (losses, train_loops.weights_of(distiller))
        except Exception as error:  # the test reads it
            found[f"ddp, {name}"] = f"{type(error).__name__}: {error}"
    return found


WAYS: tuple[Callable[[Accelerator, str], dict[str, Any]], ...] = (by_ddp, by_fsdp2, by_changes)
NAMES = (
    "ddp", "ddp, resumed", *(f"ddp, {name}" for name in CHANGES), "fsdp2, loaded by rank 0",
    "fsdp2, loaded by all",
)  # fmt: skip

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    results: dict[str, Any] = {}
    for way in WAYS:
        try:
            results.update(way(accelerator, sys.argv[1]))
        except Exception as error:  # the test reads it
            results[way.__name__] = f"{type(error).__name__}: {error}"
        dist.barrier()
    save_and_leave(results, sys.argv[1], accelerator.process_index)
