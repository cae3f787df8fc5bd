"""How a distiller is wrapped on several ranks, and where its teacher lies."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.nn.parallel import DistributedDataParallel

import distillkit as dk
from tests.support.students import blocks_of


def as_ddp(distiller: dk.Distiller) -> nn.Module:
    return DistributedDataParallel(distiller, find_unused_parameters=True)


def as_fsdp2(distiller: dk.Distiller, **options: object) -> nn.Module:
    for block in blocks_of(distiller.student):
        fully_shard(block, **options)
    fully_shard(distiller, **options)
    return distiller


def as_fsdp2_in_bf16(distiller: dk.Distiller) -> nn.Module:
    """Computed in bfloat16, stored and reduced in float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return as_fsdp2(distiller, mp_policy=policy)


def as_fsdp2_by_meta(distiller: dk.Distiller) -> nn.Module:
    """Sharded without weights, which are given by the first rank: how accelerate loads."""
    weights = distiller.state_dict()
    distiller.to("meta")
    as_fsdp2(distiller)
    distiller.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(distiller, weights if dist.get_rank() == 0 else {}, options=options)
    return distiller


def as_fsdp1(distiller: dk.Distiller) -> nn.Module:
    options = {"use_orig_params": True, "device_id": torch.device("cpu")}
    for tower in (distiller.student.text, distiller.student.image):
        for i, block in enumerate(tower.blocks):
            tower.blocks[i] = FullyShardedDataParallel(block, **options)
    return FullyShardedDataParallel(distiller, **options)


def shard_teacher(distiller: dk.Distiller, **options: object) -> None:
    for block in distiller.teacher.encoder.blocks:
        fully_shard(block, **options)
    fully_shard(distiller.teacher, **options)


def offload_teacher(distiller: dk.Distiller) -> None:
    shard_teacher(distiller, offload_policy=CPUOffloadPolicy(pin_memory=False))


def keep_teacher(distiller: dk.Distiller) -> None:
    """Every rank has all of it."""


def halve_teacher(distiller: dk.Distiller) -> None:
    """The policy casts the batch, which the teacher gets too."""
    distiller.teacher.bfloat16()


TEACHERS = {"replicated": keep_teacher, "sharded": shard_teacher, "offloaded": offload_teacher}
WAYS = {"ddp": as_ddp, "fsdp2": as_fsdp2, "fsdp2 by way of meta": as_fsdp2_by_meta}
