"""A model, a batch and an adapter under test, and what one forward of them shows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .._backbone.backbone import Backbone
from .._backbone.layout import TokenLayout
from .._backbone.signals import Signals
from .sequences import TokenSequence, sequences_of

Factory = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Run:
    """One forward: what the adapter made of what was captured."""

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
        """Its name in test reports."""
        return getattr(self.factory, "__name__", type(self.factory).__name__)

    @functools.cached_property
    def made(self) -> tuple[Backbone, dict[str, Any]]:
        """The model with its adapter, in eval mode, and the batch."""
        return self.make()

    @functools.cached_property
    def run(self) -> Run:
        """One forward of them."""
        return forward(*self.made)

    def make(self) -> tuple[Backbone, dict[str, Any]]:
        """The same ones made anew."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, batch, *given = self.factory()
        model.eval()
        return Backbone(model, given[0] if given else None), dict(batch)


def forward(
    backbone: Backbone, batch: Mapping[str, Any], *, seed: int = 0, gradient: bool = False
) -> Run:
    """One forward, from one random state."""
    with torch.random.fork_rng(), torch.set_grad_enabled(gradient):
        torch.manual_seed(seed)
        done = backbone.trace(batch)
    sequences = sequences_of(backbone.adapter.streams, done.record, done.layout)
    return Run(done.layout, done.signals, sequences)
