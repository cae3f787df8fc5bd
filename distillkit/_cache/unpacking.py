"""Examples that were read, as the signals of a batch: padded as the batch is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from .._attention import Attention
from .._backbone.axis import TokenAxis
from .._backbone.signals import Layers, Signal, Signals
from ..errors import SignalError
from .coding import coding
from .places import Places, places_in
from .shard import Example
from .spec import AxisSpec, PartSpec, PieceSpec, SignalSpec


def unpack(
    examples: Sequence[Example], specs: Sequence[SignalSpec], batch: Mapping[str, Any] | None
) -> Signals:
    """The signals of examples, in their order.

    Args:
        examples: with the arrays of these signals.
        specs: of the signals that are wanted.
        batch: the batch that they are for: its masks say where tokens go.

    Raises:
        CacheError: examples with another number of tokens than the batch has.
    """
    values: dict[str, Signal] = {}
    masks: dict[str, Tensor] = {}
    axes: dict[str, tuple[TokenAxis | None, ...]] = {}
    for spec in specs:
        places = {axis.name: places_in(axis, examples, batch) for axis in spec.axes}
        known = tuple(_token_axis(axis, places, examples) for axis in spec.axes)
        rows = known[0].valid if known else None
        layers = [_layer(spec, i, examples, places, rows) for i in range(len(spec.layers))]
        values[spec.name] = layers[0] if spec.depth is None else _all_layers(spec, layers)
        if any(one is not None for one in known):
            axes[spec.name] = tuple(one and one.known for one in known)
        if spec.form == "tensor" and rows is not None:
            masks[spec.name] = rows
    return Signals(values, masks, axes=axes)


class _Known(NamedTuple):
    known: TokenAxis | None
    valid: Tensor | None


def _all_layers(spec: SignalSpec, stored: list[Any]) -> Layers[Any]:
    assert spec.depth is not None
    known = dict(zip(spec.layers, stored, strict=True))
    return Layers([known.get(i, partial(_not_stored, spec, i)) for i in range(spec.depth)])


def _not_stored(spec: SignalSpec, layer: int) -> NoReturn:
    raise SignalError(
        f"layer {layer} of {spec.name!r} is not in the signal cache, which holds the layers "
        f"{', '.join(map(str, spec.layers))} of {spec.depth}, as its recipe needs them; fill "
        "another cache with this recipe"
    )


def _layer(
    spec: SignalSpec,
    index: int,
    examples: Sequence[Example],
    places: Mapping[str, Places],
    rows: Tensor | None,
) -> Any:
    pieces = {key: _piece(piece, examples, places) for key, piece in spec.pieces[index].items()}
    if spec.form == "tensor":
        return pieces[""]
    of_keys = places[spec.axes[1].name].valid
    headed = {key: x.transpose(1, 2) for key, x in pieces.items()}
    query, key, value = (headed.get(name) for name in ("query", "key", "value"))
    if spec.form == "products":
        assert query is not None
        assert key is not None
        mask = None if of_keys is None else of_keys[:, None, None]
        scale = spec.scales[index]
        return Attention(query, key, value, scale=scale, mask=mask, rows=rows)
    stored = headed["used" if spec.form == "used" else "log_p"]
    compute = partial(_itself, stored)
    how: dict[str, Any] = {"used": compute} if spec.form == "used" else {"scores": compute}
    if query is None and spec.form != "used":
        return Attention.from_scores(stored, rows=rows)
    mask = None if of_keys is None or spec.form != "used" else of_keys[:, None, None]
    return Attention.replayed(
        stored.shape, **how, query=query, key=key, value=value, mask=mask, rows=rows
    )


def _itself(x: Tensor) -> Tensor:
    return x


def _piece(spec: PieceSpec, examples: Sequence[Example], places: Mapping[str, Places]) -> Tensor:
    parts = {part.name.partition("~")[2]: _part(part, examples, places) for part in spec.parts}
    width = spec.sizes[-1] if spec.sizes else 0
    whole = places[width].whole if isinstance(width, str) else width
    return coding(spec.coding).decode(parts, getattr(torch, spec.dtype), whole)


def _part(spec: PartSpec, examples: Sequence[Example], places: Mapping[str, Places]) -> Tensor:
    """One array of a batch; the absent tokens hold what the spec says."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    sizes = [places[n].whole if isinstance(n, str) else n for n in spec.sizes]
    out = torch.full((len(examples), *sizes), spec.absent, dtype=dtype)
    into = out.view(_WIDTHS[dtype.itemsize]).numpy() if dtype != torch.bool else out.numpy()
    for i, example in enumerate(examples):
        shape = [example.lengths[n] if isinstance(n, str) else n for n in spec.sizes]
        numbers = example.arrays[spec.name].view(into.dtype).reshape(shape)
        where = [places[n].of[i] if isinstance(n, str) else slice(None) for n in spec.sizes]
        lists = [w for w in where if not isinstance(w, slice)]
        if len(lists) > 1:
            into[i][np.ix_(*_all_listed(where, sizes))] = numbers
        else:
            into[i, ...][tuple(where)] = numbers  # of one number, too, a view
    return out


_WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _all_listed(where: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    return [
        np.arange(size)[w] if isinstance(w, slice) else w
        for w, size in zip(where, sizes, strict=True)
    ]


def _token_axis(
    axis: AxisSpec, places: Mapping[str, Places], examples: Sequence[Example]
) -> _Known:
    tensors: dict[str, Any] = {
        name: _piece(piece, examples, places) for name, piece in axis.tokens.items()
    }
    valid = tensors.pop("valid", places[axis.name].valid)
    if axis.facts is None:
        return _Known(None, valid)
    facts: dict[str, Any] = {name: _tuple(value) for name, value in axis.facts.items()}
    return _Known(TokenAxis(**facts, **tensors, valid=valid), valid)


def _tuple(value: Any) -> Any:
    return tuple(_tuple(one) for one in value) if isinstance(value, list) else value
