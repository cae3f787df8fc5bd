"""Training engines: those that cannot run a distiller are refused, and what sharding changes."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from .._capture.wrappers import layers_of
from ..errors import CaptureError

_INSTEAD_OF_THREADS = (
    "Start one process for each GPU, `torchrun --nproc-per-node=...`, and wrap the distiller in "
    "DistributedDataParallel; or show the process one GPU, CUDA_VISIBLE_DEVICES=0"
)
_INSTEAD_OF_PARTITIONS = (
    "Use torch's own sharding, `fully_shard` (FSDP2), which does the same and is tested; or "
    "DeepSpeed below stage 3, whose parameters stay whole"
)


def check_engine(student: nn.Module) -> None:
    """Refuse a student that an engine runs in pieces, which capture cannot put together.

    ``nn.DataParallel`` runs copies of a module in threads: a capture belongs to one thread, and the
    copies' parameters are no parameters. On one device it only passes the call on, and is accepted.
    DeepSpeed's ZeRO stage 3 leaves empty parameters between the calls of modules, and gathers them
    for modules that run; the backward of a captured tensor passes by no module.

    Raises:
        CaptureError: the engine, and what to use instead.
    """
    for module in layers_of(student):
        if isinstance(module, DataParallel) and len(module.device_ids) > 1:
            raise CaptureError(
                f"the student is in nn.DataParallel over {len(module.device_ids)} devices, which "
                "runs copies of it in threads, where nothing can be captured. "
                f"{_INSTEAD_OF_THREADS}"
            )
        # a real replica has no parameters of its own, only tensors of another module
        if getattr(module, "_is_replica", False):
            raise CaptureError(
                "the distiller is in nn.DataParallel, which runs copies of it in threads, where "
                f"nothing can be captured. {_INSTEAD_OF_THREADS}"
            )
    # ZeRO marks all parameters or none
    name, parameter = next(student.named_parameters(), ("", None))
    if hasattr(parameter, "ds_id"):
        raise CaptureError(
            f"the student's parameter {name!r} is partitioned by DeepSpeed's ZeRO stage 3, "
            "which gathers it while a module runs, and not for the gradient of what is "
            f"captured. {_INSTEAD_OF_PARTITIONS}"
        )


def check_weighted(root: nn.Module, name: str) -> None:
    """Refuse to settle weights of a student whose parameters are sharded.

    A step of its optimizer writes into shards, and what the graph of a forward knows are copies.

    Raises:
        CaptureError: the engine, and what to use instead.
    """
    sharded = any(
        is_sharded(one) or type(one).__name__ == "FullyShardedDataParallel"
        for one in root.modules()
    )
    if sharded or any(hasattr(p, "full_tensor") for p in root.parameters()):
        raise CaptureError(
            f"the weighting {name!r} looks at steps and gradients of the student's parameters, "
            'which are sharded here. Use weighting = "uncertainty", which an optimizer learns, or '
            '"static"; or DistributedDataParallel, whose parameters stay whole'
        )


def is_sharded(module: nn.Module) -> bool:
    """Whether a module is sharded by FSDP2, which changes its class."""
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)


def shows_gathered(module: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter of a module that runs is one that FSDP has gathered for the time.

    It is a copy then: an optimizer steps the shards, and writes nothing into it. FSDP1 shows views
    of one flat parameter.
    """
    return (is_sharded(module) and type(parameter) is nn.Parameter) or not parameter.is_leaf


def gather_for(module: nn.Module, method: str) -> bool:
    """Let FSDP2 gather a module's parameters for a method beside ``forward``, and put them back.

    FSDP2 leaves those of the outermost module gathered until a backward, and an optimizer that is
    made in between would step copies.

    Returns:
        Whether the method of that name is another one from now on, and is to be called instead.
    """
    if not is_sharded(module) or method in vars(module):
        return False
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    assert isinstance(module, FSDPModule)
    register_fsdp_forward_method(module, method)
    gathering = getattr(module, method)

    @functools.wraps(gathering)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        try:
            return gathering(*args, **kwargs)
        finally:
            module.reshard()

    setattr(module, method, gathered)
    return True
