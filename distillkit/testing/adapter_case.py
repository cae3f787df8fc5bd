"""A model, a batch and an adapter under test, and what one forward of them shows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._backbone.adapter import Adapter, adapter_for
from .._backbone.signals import Signals
from .._backbone.tokens import TokenLayout
from .._capture.record import Record
from .._capture.scope import capture
from .sequences import TokenSequence, sequences_of

Factory = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Run:
    """One forward: what was captured and what the adapter made of it."""

    record: Record
    layout: TokenLayout
    signals: Signals
    sequences: tuple[TokenSequence, ...]


class AdapterCase:
    """A model, a batch and an adapter, made anew by a factory.

    Args:
        factory: ``factory() -> (model, batch)`` or ``(model, batch, adapter)``, where the adapter
            is whatever :func:`distillkit.adapter_for` takes. A tiny model and two examples are
            enough; texts of unequal length show more.
    """

    def __init__(self, factory: Factory) -> None:
        self.factory = factory

    @property
    def name(self) -> str:
        """What test reports call it."""
        return getattr(self.factory, "__name__", type(self.factory).__name__)

    @functools.cached_property
    def made(self) -> tuple[nn.Module, dict[str, Any], Adapter]:
        """The model in eval mode, the batch and the adapter."""
        return self.make()

    @functools.cached_property
    def run(self) -> Run:
        """One forward of them."""
        return forward(*self.made)

    def make(self) -> tuple[nn.Module, dict[str, Any], Adapter]:
        """The same ones made anew."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, batch, *given = self.factory()
        model.eval()
        return model, dict(batch), adapter_for(model, given[0] if given else None)


@torch.no_grad()
def forward(model: nn.Module, batch: Mapping[str, Any], adapter: Adapter, *, seed: int = 0) -> Run:
    """One forward under capture, from one random state."""
    with watched(model, adapter) as record:
        return finished(model, batch, adapter, record, seed=seed)


def watched(model: nn.Module, adapter: Adapter) -> Any:
    """The capture that an adapter asks for."""
    patterns = [pattern.partition("#")[0] for pattern in adapter.streams.values()]
    return capture(model, *patterns, outputs=adapter.outputs, returns=adapter.returns)


def finished(
    model: nn.Module, batch: Mapping[str, Any], adapter: Adapter, record: Record, *, seed: int = 0
) -> Run:
    """The rest of a forward, inside a capture."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model(**adapter.inputs(batch))
    layout = adapter.layout(batch, record)
    signals = adapter.signals(record, output, layout)
    return Run(record, layout, signals, sequences_of(adapter.streams, record, layout))
