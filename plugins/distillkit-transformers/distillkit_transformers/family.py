"""The adapter of one family: data, and one function that lays out its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import distillkit as dk

_OF_LAYOUTS = ("offset_mapping", "image_boxes", "region_boxes")  # where tokens lie in the raw input

Lay = Callable[[Mapping[str, Any], dk.Record], dk.TokenLayout]


@dataclass(frozen=True)
class Family:
    """An adapter of distillkit.

    Attributes:
        arguments: what the model's ``forward`` takes; of these, it is called with what the batch
            has.
        streams: stream -> pattern of its attention modules.
        lay: ``lay(batch, record)``: where the tokens of a forward sit.
        logits: the field of the model's output that holds the logits.
        embedding: modality -> the field that holds its embedding.
        absent: signals that the family cannot have -> why.
        hidden: stream -> pattern of the modules that return its hidden states.
        returns: methods whose return value ``lay`` needs.
        match: of logits ``(p, 2)`` of a matching head, which class is the match.
        count: ``count(batch)``: signal -> how many examples it will have, where they are not those
            of the batch.
    """

    arguments: tuple[str, ...]
    streams: Mapping[str, str]
    lay: Lay
    logits: str = "logits"
    embedding: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    hidden: Mapping[str, str] = field(default_factory=dict)
    returns: tuple[str, ...] = ()
    match: int | None = None
    count: Callable[[Mapping[str, Any]], Mapping[str, int]] | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The modules that return hidden states."""
        return tuple(self.hidden.values())

    @property
    def sources(self) -> Mapping[str, tuple[str, ...]]:
        """The modules that the layers of every signal are made of."""
        return dk.layer_sources(self.streams, self.hidden)

    @property
    def entries(self) -> frozenset[str]:
        """The batch entries that inputs and layout may read."""
        return frozenset([*self.arguments, *_OF_LAYOUTS])

    def examples(self, batch: Mapping[str, Any]) -> Mapping[str, int]:
        """How many examples the signals have that do not have those of the batch."""
        return {} if self.count is None else self.count(batch)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {name: batch[name] for name in self.arguments if name in batch}

    def layout(self, batch: Mapping[str, Any], record: dk.Record) -> dk.TokenLayout:
        return self.lay(batch, record)

    def signals(self, record: dk.Record, output: Any, layout: dk.TokenLayout) -> dk.Signals:
        values: dict[str, Tensor] = {}
        absent = dict(self.absent)
        for name, field_name in {
            "logits": self.logits,
            **{f"embedding.{modality}": f for modality, f in self.embedding.items()},
        }.items():
            value = output_value(output, field_name)
            if value is not None:
                values[name] = value
            else:
                absent.setdefault(name, missing_field(output, field_name))
        return dk.build_signals(
            record, self.streams, layout, values=values, hidden=self.hidden, absent=absent
        )


def output_value(output: Any, name: str) -> Tensor | None:
    """A field of a model's output; None: it has no such field, or another one is computed."""
    value = getattr(output, name, None)
    if value is None and isinstance(output, Mapping):
        value = output.get(name)
    return value if isinstance(value, Tensor) else None


def missing_field(output: Any, name: str) -> str:
    """Why a signal is absent whose field a model's output has not."""
    if output is None:
        return (
            "the backbone was not called as a whole, so that it has no output; name the head of "
            'your model, dk.adapt(model, at="...", logits="head")'
        )
    return (
        f"its output, {type(output).__name__}, has no field {name!r}: take the class of the family "
        'with a head, or name the head of your own model, dk.adapt(model, at="...", logits="head")'
    )
