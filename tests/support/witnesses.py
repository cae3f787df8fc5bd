"""What a model itself says about its attention, seen without the library.

Two independent witnesses: the maps that transformers' eager models return, and every product that
the dispatcher computed, below Python, in which the output of an attention must be found again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

TOLERANCE = 1e-5


class Map(NamedTuple):
    """One map of probabilities; ``module`` returned it, or it was found in the output alone."""

    module: str | None
    probabilities: Tensor


def own_maps(model: nn.Module, batch: Mapping[str, Any]) -> list[Map]:
    """Every map of an eager model: returned by its modules, and in its output."""
    returned: list[Map] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            continue  # returns a mean over heads

        def keep(_: nn.Module, __: object, result: object, name: str = name) -> None:
            for tensor in result[1:3] if isinstance(result, tuple) else ():
                known = any(tensor is found.probabilities for found in returned)
                if is_probabilities(tensor) and not known:  # the innermost module comes first
                    returned.append(Map(name, tensor))
                    return

        handles.append(module.register_forward_hook(keep))
    try:
        output = model(**batch, output_attentions=True)
    finally:
        for handle in handles:
            handle.remove()
    extra = [
        Map(None, tensor)
        for tensor in attentions_in(output)
        if not any(tensor is found.probabilities for found in returned)
    ]
    return returned + extra


def is_probabilities(x: object) -> bool:
    """A tensor whose rows are distributions."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim not in (3, 4, 5):
        return False
    rows = x.detach().sum(-1)
    return (
        x.shape[-1] > 1 and bool((x >= 0).all()) and torch.allclose(rows, torch.ones(()), atol=1e-4)
    )


def attentions_in(output: object, key: str = "") -> Iterator[Tensor]:
    """The tensors under a field of the output whose name says attentions."""
    if isinstance(output, Tensor):
        if "attentions" in key and output.ndim >= 3:
            yield output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            yield from attentions_in(value, f"{key}.{name}")
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from attentions_in(value, key)


def tensors_in(output: object) -> list[Tensor]:
    """Every tensor of a nested output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in tensors_in(value)]
    return []


class Products(TorchDispatchMode):
    """Keeps the result of every matrix product and fused attention, wherever it was called."""

    NAMES = ("bmm", "mm", "baddbmm", "addmm")

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name in self.NAMES:
            self.results.append(result.detach().clone())
        elif "attention" in name and "backward" not in name:
            first = result[0] if isinstance(result, tuple) else result
            self.results.append(first.detach().clone())
        return result


def mixed(attention: Any) -> Tensor:
    """``probabilities @ value``, ``(b, h, q, e)``: what the attention must have computed."""
    probabilities, value = attention.probabilities(), attention.value
    assert value is not None, "the record has no value"
    return probabilities @ value.repeat_interleave(probabilities.shape[1] // value.shape[1], 1)


def distance_to_a_product(output: Tensor, valid: Tensor, results: list[Tensor]) -> float:
    """The largest difference of ``(b, h, q, e)`` to the product it is found in, in any layout.

    Rows that see no key are left out: there, a model is free to say what it likes.
    """
    output = output.detach()
    seen = valid[..., None].expand(output.shape)
    best = float("inf")
    scale = max(1.0, output.abs().max().item())
    for result in results:
        if result.numel() != output.numel():
            continue
        for axes in itertools.permutations(range(4)):
            ours, rows = output.permute(axes).flatten(), seen.permute(axes).flatten()
            off = ((ours - result.flatten()).abs() * rows).max().item()
            best = min(best, off / scale)
        if best <= TOLERANCE:
            break
    return best


def distance_to_a_map(found: Map, records: Mapping[str, tuple[Any, ...]]) -> float:
    """The largest difference to the nearest record, of the same module where the map has one."""
    expected = found.probabilities.detach()
    if found.module is None and torch.allclose(expected.sum(-2), torch.ones(()), atol=1e-4):
        expected = expected.mT  # a softmax over the rows: keys by queries
    best = float("inf")
    for name, attentions in records.items():
        if found.module is not None and not related(name, found.module):
            continue
        for attention in attentions:
            ours = attention.probabilities().detach()
            if ours.numel() != expected.numel() or ours.shape[-2:] != expected.shape[-2:]:
                continue
            seen = attention.valid_rows()[..., None].expand(ours.shape).reshape(expected.shape)
            off = ((ours.reshape(expected.shape) - expected).abs() * seen).max().item()
            best = min(best, off)
    return best


def related(name: str, other: str) -> bool:
    """The same module, or one inside the other."""
    return name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.")
