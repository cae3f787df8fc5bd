"""The examples of all processes, for losses that compare examples with each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import ShapeError

__all__ = ["gather"]

Shape = tuple[int, ...]

_MOST_AXES = 8
_DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


def gather(x: Tensor) -> Tensor:
    """The examples of every process, first axis by rank, with gradient to the process they are of.

    Contrastive losses see one process's examples; gathered ones are the whole batch, and every
    process computes the same loss. Average it over processes as DDP does: gradients then equal
    those of one process on the joined batch. Processes may have unequally many examples, and none.
    Without a process group it returns ``x``. A term does it by itself, ``gather = true``.

    It is a collective of the default group: every process calls it equally often, and goes back
    through it.

    Raises:
        ShapeError: a scalar; examples that differ in shape or dtype, on every process alike.

    Examples:
        >>> gather(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    if x.ndim == 0:
        raise ShapeError("gather joins examples along the first axis; got a scalar")
    if processes() == 1:
        return x
    shapes = shapes_of_ranks(x, x.device)
    if len({shape and shape[1:] for shape in shapes}) > 1:
        raise ShapeError(
            "gather needs examples of one shape on every process; got "
            f"{', '.join(map(str, shapes))}. Pad them to one length first"
        )
    return gather_padded(x, shapes, 0)


def processes() -> int:
    """How many processes work together; 1 where nobody set up a process group."""
    there = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if there else 1


def shapes_of_ranks(x: Tensor | None, device: torch.device) -> list[Shape | None]:
    """The shape of every process's tensor, in the order of ranks; None where it has none.

    Raises:
        ShapeError: other dtypes or numbers of axes on other processes, on each of them alike, so
            that none waits for the others.
    """
    header = torch.full((_MOST_AXES + 2,), -1, dtype=torch.long)
    if x is not None:
        if x.ndim > _MOST_AXES or x.dtype not in _DTYPES:
            raise ShapeError(
                f"gather takes tensors of up to {_MOST_AXES} axes, boolean, integer or floating "
                f"point; got {x.dtype} {tuple(x.shape)}"
            )
        header[:2] = torch.tensor([x.ndim, _DTYPES.index(x.dtype)])
        header[2 : 2 + x.ndim] = torch.tensor(x.shape)
    header = header.to(device)
    headers = [torch.empty_like(header) for _ in range(processes())]
    dist.all_gather(headers, header)
    listed = torch.stack(headers).tolist()
    kinds = {tuple(one[:2]) for one in listed if one[0] >= 0}
    shapes = [tuple(one[2 : 2 + one[0]]) if one[0] >= 0 else None for one in listed]
    if len(kinds) > 1:
        dtypes = ", ".join(
            "nothing" if shape is None else f"{_DTYPES[one[1]]} {shape}"
            for one, shape in zip(listed, shapes, strict=True)
        )
        raise ShapeError(
            f"gather needs one dtype and number of axes on every process; got {dtypes}"
        )
    return shapes


def gather_padded(x: Tensor, shapes: Sequence[Shape | None], fill: float) -> Tensor:
    """The same as :func:`gather`, where other axes may differ: their ends are filled up.

    Args:
        x: this process's part.
        shapes: of every process's, as :func:`shapes_of_ranks` found them.
        fill: what stands behind the shorter ones.
    """
    found: Tensor = _Gather.apply(x, tuple(shapes), fill)  # type: ignore[no-untyped-call]
    return found


class _Gather(torch.autograd.Function):
    """Everybody's examples; each process gets back the sum of everybody's gradients to its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shapes: Sequence[Shape], fill: float) -> Tensor:
        rank = dist.get_rank()
        ctx.start, ctx.shape = sum(shape[0] for shape in shapes[:rank]), x.shape
        whole = [max(sizes) for sizes in zip(*shapes, strict=True)]
        kind = torch.uint8 if x.dtype == torch.bool else x.dtype
        # everybody sends a tensor of one size
        sent = torch.full(whole, fill, dtype=kind, device=x.device)
        sent[tuple(map(slice, x.shape))] = x
        parts = [torch.empty_like(sent) for _ in shapes]
        if sent.numel():
            dist.all_gather(parts, sent)
        joined = torch.cat([part[: shape[0]] for part, shape in zip(parts, shapes, strict=True)])
        return joined.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.contiguous().clone()
        if total.numel():
            dist.all_reduce(total)
        own = total[ctx.start :][tuple(map(slice, ctx.shape))]
        return own, None, None
