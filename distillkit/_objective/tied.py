"""Tied weights in a state dict: saved once, by their first name, and found again when loaded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import nn


def drop_aliases(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    """Keep the first name of each tied weight; safetensors refuses tensors that share memory."""
    for _first, alias in _aliases(module):
        state.pop(f"{prefix}{alias}", None)


def fill_aliases(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Give every name of a tied weight what was saved by one of them."""
    for first, alias in _aliases(module):
        one, other = f"{prefix}{first}", f"{prefix}{alias}"
        if one in state:
            state.setdefault(other, state[one])
        elif other in state:
            state[one] = state[other]


def _aliases(module: nn.Module) -> Iterator[tuple[str, str]]:
    """First and further name of each weight that has several."""
    first: dict[int, str] = {}
    parameters = module.named_parameters(remove_duplicate=False)
    named = chain(parameters, module.named_buffers(remove_duplicate=False))
    for name, tensor in named:
        known = first.setdefault(id(tensor), name)
        if known != name:
            yield known, name
