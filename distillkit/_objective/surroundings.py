"""What surrounds a distiller's step: the batch as it is given, other processes, modes put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._backbone.batch import checked_batch
from ..errors import SignalError


def one_batch(
    batch: Mapping[str, Any] | None, entries: Mapping[str, Any], labels: Any
) -> Mapping[str, Any]:
    """The batch, given as one mapping or by keywords."""
    if batch is not None:
        if entries or labels is not None:
            extra = next(iter(entries), "labels")
            raise SignalError(
                f"a batch is given as one mapping or by keywords, not both; beside the mapping "
                f"there is {extra!r}: put it into the batch"
            )
        return checked_batch(batch)
    return entries if labels is None else {**entries, "labels": labels}


def over_ranks(totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Counts of all processes together, divided by their number, in float32 as losses are."""
    if not (dist.is_available() and dist.is_initialized()):
        return {name: total.float() for name, total in totals.items()}
    names = sorted(totals)  # every process sums in the same order
    joined = torch.cat([totals[name].reshape(-1) for name in names])
    dist.all_reduce(joined)
    joined = (joined / dist.get_world_size()).float()
    parts = torch.split(joined, [totals[name].numel() for name in names])
    return {n: part.reshape(totals[n].shape) for n, part in zip(names, parts, strict=True)}


def any_rank_lacks(counts: Sequence[object | None]) -> bool:
    """Whether a count is missing on this rank or on another: all of them then do the same."""
    lacks = any(one is None for one in counts)
    if not (dist.is_available() and dist.is_initialized()):
        return lacks
    missing = torch.tensor(int(lacks), device=device_of_collectives())
    dist.all_reduce(missing)
    return bool(missing)


def device_of_collectives() -> torch.device:
    """Where the process group takes tensors from."""
    backend = dist.get_backend()
    return (
        torch.device("cuda", torch.cuda.current_device())
        if backend == "nccl"
        else torch.device("cpu")
    )


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Freezing the teacher must not freeze a part of the student in silence."""
    frozen_with_it = {id(p) for p in teacher.parameters()}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and id(parameter) in frozen_with_it:
            raise SignalError(
                f"student and teacher share the parameter {name!r}, which learns, while a teacher "
                "is frozen. Give the teacher a copy, copy.deepcopy(part), or freeze the shared "
                "part yourself, part.requires_grad_(False)"
            )


@contextmanager
def dry_run(distiller: nn.Module) -> Iterator[None]:
    """Eval mode and a random state of its own, both put back."""
    modes = {module: module.training for module in distiller.modules()}
    try:
        with torch.random.fork_rng(_accelerators(distiller)):
            distiller.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _accelerators(distiller: nn.Module) -> list[torch.device]:
    return sorted({p.device for p in distiller.parameters() if p.device.type == "cuda"}, key=str)
