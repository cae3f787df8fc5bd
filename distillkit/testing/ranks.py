"""Two real processes, each with its own part of a batch, against one process with the whole."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .._objective.distiller import Distiller
from .verdicts import UnmetError

_RANKS = 2
_PATIENCE = 120.0  # seconds

Made = tuple[Distiller, dict[str, Any], list[dict[str, Any]]]
"""A distiller, a batch and its two parts."""


class OfRank(NamedTuple):
    """The gradients of one rank.

    Attributes:
        whole: the gradient of the whole batch, alone.
        parts: the gradient of the rank's part under DDP.
    """

    whole: Tensor
    parts: Tensor


def in_two_processes(
    make: Callable[[Any], Made], gradients: Callable[[Distiller], Tensor], case: object
) -> list[OfRank]:
    """Run two processes; return the gradients of each, in the order of their ranks.

    Args:
        make: a function of a module, from the case to distiller, batch and parts.
        gradients: a function of a module, from a distiller to all its gradients.
        case: what ``make`` takes; it is pickled.

    Raises:
        UnmetError: the case does not pickle, or a process failed.
    """
    try:
        job = pickle.dumps((make, gradients, case))
    except Exception as error:
        raise UnmetError(
            f"another process cannot import the factory ({error}); make it a function of a module"
        ) from None
    spawning = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            spawning.Process(target=_run, args=(job, rank, folder), daemon=True)
            for rank in range(_RANKS)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + _PATIENCE
        try:
            # a rank that failed is not waited for by the other, which waits for it
            while any(one.is_alive() for one in processes) and not _is_over(folder, deadline):
                time.sleep(0.05)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                    process.join()
        _check_done(Path(folder))
        return [OfRank(*torch.load(Path(folder) / f"{rank}.pt")) for rank in range(_RANKS)]


def _is_over(folder: str, deadline: float) -> bool:
    """Whether a rank said that it failed, or the time is up."""
    return any(Path(folder).glob("*.txt")) or time.monotonic() > deadline


def _check_done(folder: Path) -> None:
    for rank in range(_RANKS):
        said = folder / f"{rank}.txt"
        if said.exists():
            raise UnmetError(f"rank {rank}: {said.read_text(encoding='utf-8').strip()}")
    for rank in range(_RANKS):
        if not (folder / f"{rank}.pt").exists():
            raise UnmetError(
                f"rank {rank} ended and saved nothing; a script that calls this does so under "
                '`if __name__ == "__main__":`'
            )


def _run(job: bytes, rank: int, folder: str) -> None:
    """One process: saves what it saw, or says what went wrong, and leaves at once.

    The regular way out joins threads of the gloo backend, which on a busy machine aborts.
    """
    unfinished = Path(folder) / f"{rank}.part"
    try:
        make, gradients, case = pickle.loads(job)
        torch.save(tuple(_of_rank(make, gradients, case, rank, folder)), unfinished)
        unfinished.rename(unfinished.with_suffix(".pt"))
    except BaseException as error:
        unfinished.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        unfinished.rename(unfinished.with_suffix(".txt"))
    deadline = time.monotonic() + _PATIENCE
    while len([*Path(folder).glob("*.pt"), *Path(folder).glob("*.txt")]) < _RANKS:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    os._exit(0)


def _of_rank(
    make: Callable[[Any], Made],
    gradients: Callable[[Distiller], Tensor],
    case: object,
    rank: int,
    folder: str,
) -> OfRank:
    torch.set_num_threads(1)
    distiller, batch, parts = make(case)
    distiller(batch).loss.backward()  # type: ignore[no-untyped-call]
    whole = gradients(distiller)
    distiller.zero_grad()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=_RANKS
    )
    wrapped = DistributedDataParallel(distiller, find_unused_parameters=True)
    part: Mapping[str, Any] = parts[rank]
    wrapped(part, normalizer=distiller.normalizer([part])).loss.backward()
    return OfRank(whole, gradients(distiller))
