"""Run by torchrun: weights that settle themselves, each rank on two unequal parts of a step."""

from __future__ import annotations

import importlib.util
import sys
import warnings

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from distillkit import errors
from tests.distributed.leave import save_and_leave
from tests.support import weighted

CUTS = [[(0, 1), (1, 2)], [(2, 5), (5, 6)]]
INSTALLED = weighted.TORCHJD if importlib.util.find_spec("torchjd") else {}
WEIGHTINGS = {**weighted.WEIGHTINGS, **INSTALLED}
SETTLED = {name: given for name, given in WEIGHTINGS.items() if name != "uncertainty"}
STEPS = range(4)


def parts_of(name: str, rank: int) -> list[tuple[int, int]]:
    """One that settles now looks at the first call of a step, which has to be the whole of it."""
    cuts = CUTS[rank]
    return [(cuts[0][0], cuts[1][1])] if name.endswith(" now") else cuts


def summed(found: list) -> list:
    """The loss of both ranks together."""
    losses = torch.tensor([loss for _, loss in found], dtype=torch.float64)
    dist.all_reduce(losses)
    means = (losses / dist.get_world_size()).tolist()
    return [(weights, loss) for (weights, _), loss in zip(found, means, strict=True)]


def around_the_distiller(name: str, rank: int) -> list:
    distiller = weighted.distiller_of(WEIGHTINGS[name])
    model = DistributedDataParallel(distiller, find_unused_parameters=True)
    return summed(weighted.train(distiller, STEPS, parts_of(name, rank), model=model))


def around_the_student(name: str, rank: int) -> list:
    distiller = weighted.distiller_of(WEIGHTINGS[name])
    distiller.student = DistributedDataParallel(distiller.student, find_unused_parameters=True)
    return summed(weighted.train(distiller, STEPS, parts_of(name, rank)))


def loaded_by_the_first_rank(name: str, rank: int) -> dict[str, float]:
    trained = weighted.distiller_of(WEIGHTINGS[name])
    weighted.train(trained, range(5), parts_of(name, rank))
    distiller = weighted.distiller_of(WEIGHTINGS[name])
    if rank == 0:
        distiller.load_state_dict(trained.state_dict())
    model = DistributedDataParallel(distiller, find_unused_parameters=True)
    return model(weighted.batch_of(5)).weights


def sharded(name: str, rank: int) -> list | str:
    distiller = weighted.distiller_of(WEIGHTINGS[name])
    model = fully_shard(distiller.double())  # its parameters are of one dtype
    try:
        return summed(weighted.train(distiller, STEPS, parts_of(name, rank), model=model))
    except errors.CaptureError as error:
        return str(error)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {
        "distiller": {name: around_the_distiller(name, rank) for name in WEIGHTINGS},
        "student": {name: around_the_student(name, rank) for name in SETTLED},
        "loaded": {name: loaded_by_the_first_rank(name, rank) for name in SETTLED},
        "sharded": {name: sharded(name, rank) for name in ("uncertainty", "gradnorm")},
    }
    save_and_leave(found, sys.argv[1], rank)
