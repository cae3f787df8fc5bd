"""The signals of several forwards as one: their values, one after another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._attention import Attention
from ..errors import ShapeError, SignalError
from .layers import Layers, Refusal


def first_computed(value: Any) -> Tensor | Attention | None:
    """The value, or the first of its layers that is computed."""
    if isinstance(value, Layers):
        value = value.computed
    layers = value if isinstance(value, (list, tuple)) else [value]
    return next((layer for layer in layers if isinstance(layer, (Tensor, Attention))), None)


def check_same_names(parts: Sequence[Collection[str]], absent: Sequence[Mapping[str, str]]) -> None:
    """Refuse forwards with signals of other names.

    Raises:
        SignalError: no forwards; a signal that one of them lacks, and why.
    """
    if not parts:
        raise SignalError("there are no signals to concatenate: pass those of at least one forward")
    names = {name for part in parts for name in part}
    for number, part in enumerate(parts):
        missing = sorted(names.difference(part))
        if missing:
            why = "".join(
                f" ({absent[number][name]})" for name in missing[:1] if name in absent[number]
            )
            raise SignalError(
                f"forwards to concatenate have the same signals, but number {number} has no "
                f"{', '.join(map(repr, missing))}{why}; signals.only(...) leaves out what not all "
                "of them have"
            )


def concatenate(name: str, values: Sequence[Any]) -> Any:
    """One signal of several forwards; a refusal where one of them refuses."""
    for value in values:
        if isinstance(value, Refusal):
            return value
    depths = {len(value) if isinstance(value, list) else 0 for value in values}
    if len(depths) > 1:
        raise ShapeError(f"signal {name!r} has {sorted(depths)} layers in forwards to concatenate")
    if isinstance(values[0], list):
        return Layers([concatenate(name, layer) for layer in zip(*values, strict=True)])
    if isinstance(values[0], Attention):
        try:
            return Attention.concatenate(values)
        except ShapeError as error:
            raise ShapeError(f"signal {name!r}: {error}") from None
    if len({value.shape[1:] for value in values}) > 1 or any(not x.ndim for x in values):
        raise ShapeError(
            f"signal {name!r} is {', '.join(str(tuple(x.shape)) for x in values)}: forwards to "
            "concatenate have tensors of one size but for the examples, the first axis. Pad every "
            "text to one length"
        )
    return torch.cat(list(values))


def count_examples(value: Any) -> int | None:
    """How many examples a computed signal is of."""
    first = first_computed(value)
    return None if first is None else first.shape[0]
