"""What a cache holds of each signal, as its header says it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Form = Literal["tensor", "products", "log_probabilities", "used"]
"""An attention is written as queries and keys, as log-probabilities over the keys that are kept,
or, where a model changes its probabilities before it weighs its values, as those that it used."""

Size = int | str
"""A number, or the name of a token axis: its length is another for each example."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PartSpec(_Frozen):
    """One array of numbers.

    Attributes:
        name: in the shards, ``"logits"`` or ``"attention.text_to_image/11/key"``.
        dtype: as torch calls it, ``"float32"``.
        sizes: of one example.
        absent: what stands where an example has no token.
    """

    name: str
    dtype: str
    sizes: tuple[Size, ...]
    absent: float = 0.0


class PieceSpec(_Frozen):
    """One tensor of a signal: a layer, the queries of a layer, the places of its tokens.

    Attributes:
        name: the start of the names of its parts.
        coding: how its numbers are written.
        dtype: of what is read.
        sizes: of one example.
        parts: what is written of it.
        error: the mean error of the coding, as it was measured when the cache was begun.
    """

    name: str
    coding: str
    dtype: str
    sizes: tuple[Size, ...]
    parts: tuple[PartSpec, ...]
    error: float = 0.0


class Follows(_Frozen):
    """The mask of a batch that says where the tokens of an axis go.

    Attributes:
        mask: the batch entries that make it up, one after another; a number stands for so many
            tokens that are always there.
        part: the axis is a part of that sequence; else it is the sequence.
        padding: of a part: padding of the sequence belongs to it.
    """

    mask: tuple[str | int, ...]
    part: bool
    padding: bool = False


class AxisSpec(_Frozen):
    """One token axis of a signal.

    Attributes:
        name: as sizes call it: ``"attention.text_to_image:0"``.
        follows: the mask that says where its tokens go in a batch; None: no entry does.
        facts: what is known of all of its tokens, as ``TokenAxis`` has it; None: nothing.
        tokens: field of ``TokenAxis`` -> its tensor.
    """

    name: str
    follows: Follows | None = None
    facts: dict[str, Any] | None = None
    tokens: dict[str, PieceSpec] = {}

    @property
    def signal(self) -> str:
        """The signal that it is of."""
        return self.name.rpartition(":")[0]


class SignalSpec(_Frozen):
    """One signal.

    Attributes:
        name: of the signal.
        form: how it is written.
        depth: how many layers the teacher's has; None: it has no layers.
        layers: the layers that are stored, from the bottom; ``(0,)`` where it has none.
        axes: its token axes: none, that of the tokens, or those of queries and keys.
        pieces: layer -> piece -> tensor, in the order of ``layers``.
        scales: of an attention by queries and keys, the factor of the products of each layer.
        tokens: all is stored that is known of the tokens of its axes.
        averages_heads: of an attention, one map stands for the mean over its heads.
        temperatures: at which a coding's error is measured, of logits and attention: the largest.
        bound: the largest mean error that its coding may have in a batch; None: the coding was
            chosen, and any finite error is right.
    """

    name: str
    form: Form
    depth: int | None
    layers: tuple[int, ...]
    axes: tuple[AxisSpec, ...]
    pieces: tuple[dict[str, PieceSpec], ...]
    scales: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = (1.0,)
    bound: float | None = None
    tokens: bool = False
    averages_heads: bool = False

    def every_piece(self) -> list[PieceSpec]:
        """The tensors of all layers, and of the tokens."""
        of_layers = [piece for layer in self.pieces for piece in layer.values()]
        return of_layers + [piece for axis in self.axes for piece in axis.tokens.values()]

    def every_part(self) -> list[PartSpec]:
        """Every array of numbers."""
        return [part for piece in self.every_piece() for part in piece.parts]
