"""The gradients of the terms of a call, each by itself, as rows of a Jacobian."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..._capture.names import ModuleNames
from ..._torch_private import is_reentrant_node
from ...errors import CaptureError, RecipeError

_REENTRANT = (
    "a weighting by gradients cannot run here: the student is checkpointed in the reentrant way, "
    "which gives no gradients beside backward(); checkpoint it with use_reentrant=False"
)
_DONATED = (
    "a weighting by gradients cannot run here: the student's compiled backward gives its buffers "
    "away, so that it runs once; set torch._functorch.config.donated_buffer = False before it is "
    "compiled"
)


def parameters_at(model: nn.Module, at: str | None) -> list[nn.Parameter]:
    """The parameters that learn, of the modules that match; None: of the whole model.

    Raises:
        RecipeError: no module matches, or nothing of them learns.
    """
    try:
        names = ModuleNames(model)
        chosen = [model] if at is None else [names.modules[n] for n in names.matching_all([at])]
    except CaptureError as error:
        raise RecipeError(f"weighting, at = {at!r}: {error}") from None
    found = {id(p): p for one in chosen for p in one.parameters() if p.requires_grad}
    if not found:
        where = "the student" if at is None else f"the modules that match at = {at!r}"
        raise RecipeError(f"a weighting by gradients needs parameters that learn in {where}")
    return list(found.values())


def gradient_rows(
    values: Sequence[Tensor], names: Sequence[str], parameters: Sequence[Tensor], where: str
) -> Tensor:
    """``(k, n)``: the gradient of each value with respect to all parameters, float32 at least.

    The graph is kept for the backward to come; nothing is accumulated in ``grad``, and no hook of
    a parameter runs (DDP reduces nothing).

    Raises:
        RecipeError: a term that reaches none of the parameters; a student whose graph runs once.
    """
    device = parameters[0].device
    double = any(p.dtype == torch.float64 for p in parameters)
    dtype = torch.float64 if double else torch.float32
    rows = torch.zeros(len(values), sum(p.numel() for p in parameters), dtype=dtype, device=device)
    for row, value, name in zip(rows, values, names, strict=True):
        found = _gradients(value, parameters)
        if all(one is None for one in found):
            raise RecipeError(
                f"term {name!r} depends on no parameter of {where}, where the weighting measures "
                'gradients: choose modules that every term is computed from, `at = "..."`, or '
                "leave `at` out for the whole student"
            )
        start = 0
        for parameter, one in zip(parameters, found, strict=True):
            stop = start + parameter.numel()
            if one is not None:
                row[start:stop] = one.reshape(-1)
            start = stop
    return rows


def _gradients(value: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(parameters)
    try:
        return torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "donated buffers" in str(error):
            raise RecipeError(_DONATED) from error
        raise


def refuse_reentrant(values: Iterable[Tensor]) -> None:
    """Refuse a graph with a reentrant checkpoint, whose parameters would seem to be unused.

    Raises:
        RecipeError: the other way to checkpoint.
    """
    waiting = [value.grad_fn for value in values]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if is_reentrant_node(node.name()):
            raise RecipeError(_REENTRANT)
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)


def gramian_of(rows: Tensor) -> Tensor:
    """``(k, k)``, inner products of the rows, summed in float64 where the device has it."""
    wide = wide_dtype(rows.device)
    total = torch.zeros(len(rows), len(rows), dtype=wide, device=rows.device)
    for part in torch.split(rows, _COLUMNS, 1):
        part = part.to(wide)
        total += part @ part.T
    return total


_COLUMNS = 1 << 20


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest float of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
