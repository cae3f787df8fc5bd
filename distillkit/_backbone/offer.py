"""What one side alone offers on a batch, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .._attention import Attention
from .._notebook import preformatted
from ..errors import DistillKitError
from .adapter import Adapter
from .signals import Signals


@dataclass(frozen=True)
class OfferedSignal:
    """One signal that a backbone offers.

    Attributes:
        name: of the signal.
        layers: how many it has; None: it has none.
        shape: of the signal, or of its last layer.
        counted: how many rows or positions count, of how many.
        problem: why it cannot be had; empty where it can.
    """

    name: str
    layers: int | None = None
    shape: str = ""
    counted: str = ""
    problem: str = ""


@dataclass(frozen=True)
class BackboneCheck:
    """The table of :meth:`Backbone.check`.

    Attributes:
        model: the class of the model.
        adapter: the class of its adapter.
        signals: what it offers, or why it cannot.
        unused: entries of the batch that nothing read.
        derived: signals that are made of these when a term, or somebody, asks for them.
    """

    model: str
    adapter: str
    signals: tuple[OfferedSignal, ...]
    unused: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every signal that is offered can be had."""
        return not any(one.problem for one in self.signals)

    _repr_html_ = preformatted  # in a notebook

    def __str__(self) -> str:
        rows = [("signal", "layers", "shape", "counts")]
        for one in self.signals:
            layers = "-" if one.layers is None else str(one.layers)
            rows.append((one.name, layers, one.shape or "-", one.counted or "-"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        problems = [f"! {one.name}: {one.problem}" for one in self.signals if one.problem]
        unused = [f"  nothing reads {', '.join(map(repr, self.unused))}"] if self.unused else []
        made = [f"  made of these: {', '.join(self.derived)}"] if self.derived else []
        return "\n".join([f"{self.model} by {self.adapter}", *lines, *made, *problems, *unused])


def list_offers(
    model: nn.Module, adapter: Adapter, signals: Signals, unused: Sequence[str]
) -> BackboneCheck:
    """The table of what a forward exposed."""
    rows = [_offer(str(name), signals) for name in signals]
    rows += [OfferedSignal(name, counted=f"absent: {why}") for name, why in signals.absent.items()]
    return BackboneCheck(
        type(model).__name__,
        type(adapter).__name__,
        tuple(rows),
        tuple(unused),
        tuple(sorted(signals.derived)),
    )


def _offer(name: str, signals: Signals) -> OfferedSignal:
    try:
        value: Any = signals[name]
        if isinstance(value, (Tensor, Attention)):
            return OfferedSignal(name, None, _shape(value), _counted(value, signals.mask(name)))
        if not len(value):
            return OfferedSignal(name, 0, problem="no module returned it")
        last = value[-1]
        return OfferedSignal(name, len(value), _shape(last), _counted(last, signals.mask(name)))
    except DistillKitError as error:
        return OfferedSignal(name, problem=str(error))


def _shape(value: Tensor | Attention) -> str:
    if isinstance(value, Attention):
        return f"({', '.join(f'{k}={n}' for k, n in zip('bhqk', value.shape, strict=True))})"
    return str(tuple(value.shape))


def _counted(value: Tensor | Attention, mask: Tensor | None) -> str:
    if isinstance(value, Attention):
        rows = value.valid_rows()[:, 0]
        return f"{int(rows.sum())} of {rows.numel()} rows"
    return "" if mask is None else f"{int(mask.sum())} of {mask.numel()} positions"
