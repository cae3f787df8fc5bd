"""A batch's signals as examples to be written, without padding."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._attention import Attention
from .._backbone.batch import SideOfBatch
from .._backbone.signals import Signals
from ..errors import CacheError
from .coding import coding, relative_error
from .places import stored_places
from .planning import measured_error
from .reading import (
    Piece,
    Tokens,
    facts_of,
    form_of,
    layers_of,
    pieces_of,
    prepared,
    token_tensors,
    tokens_of,
)
from .shard import Example, raw, tensor_of
from .spec import AxisSpec, PieceSpec, SignalSpec

Numbers = dict[str, Any]

_ROUNDING = 0.01  # of the root mean square: runs on a GPU need not agree to the last digit


class _Axis:
    """Where the tokens of one axis sit in each example of a batch."""

    def __init__(self, spec: AxisSpec, tokens: Tokens, batch: SideOfBatch) -> None:
        real = tokens.real.cpu()
        self.whole = real.shape[1]
        self.taken = [row.nonzero()[:, 0].numpy() for row in real]
        self.stored = stored_places(spec, tokens, batch)


def pack(
    signals: Signals,
    specs: Sequence[SignalSpec],
    keys: Sequence[str],
    chosen: Sequence[int],
    inputs: Mapping[str, Sequence[int]],
    batch: SideOfBatch,
) -> list[Example]:
    """The ``chosen`` examples of a batch, as the specs say.

    Raises:
        CacheError: signals that are not as those that the cache was begun with, or whose coding has
            a larger error here than was allowed.
    """
    axes: dict[str, _Axis] = {}
    arrays: Numbers = {}
    axes_of: dict[str, tuple[str | None, ...]] = {}
    for spec in specs:
        for part, array, names in _parts_of_signal(signals, spec, batch, axes, len(keys)):
            arrays[part], axes_of[part] = array, names
    return [
        Example(
            key=keys[i],
            arrays={part: _of_example(x, i, axes_of[part], axes) for part, x in arrays.items()},
            lengths={name: len(axis.taken[i]) for name, axis in axes.items()},
            wholes={name: axis.whole for name, axis in axes.items()},
            places={name: axis.stored[i] for name, axis in axes.items()},
            inputs={entry: numbers[i] for entry, numbers in inputs.items()},
        )
        for i in chosen
    ]


def check_repeats(
    specs: Sequence[SignalSpec], once: Sequence[Example], again: Sequence[Example]
) -> None:
    """Refuse a teacher that gives the same examples other signals in another run.

    Raises:
        CacheError: the signal. Runs differ by rounding, which is no more than a hundredth.
    """
    for spec in specs:
        for piece in (piece for layer in spec.pieces for piece in layer.values()):
            part = piece.parts[0]
            dtype: torch.dtype = getattr(torch, part.dtype)
            one, other = (
                [tensor_of(example.arrays[part.name], dtype).float() for example in examples]
                for examples in (once, again)
            )
            if _differ(torch.cat(one), torch.cat(other)):
                raise CacheError(
                    f"{spec.name!r} is another in every run of the teacher, although it is in eval "
                    "mode: it draws at random, as ViLT draws the order of its patches (its "
                    "attention.text_to_image is in the order of the image). Compare another "
                    "signal, or make the teacher's run repeatable"
                )


def _differ(one: Tensor, other: Tensor) -> bool:
    there = one.isfinite()
    if not torch.equal(there, other.isfinite()):  # also where there are more, or fewer
        return True
    return relative_error(one[there], other[there]) > _ROUNDING


def _parts_of_signal(
    signals: Signals,
    spec: SignalSpec,
    batch: SideOfBatch,
    axes: dict[str, _Axis],
    examples: int,
) -> Any:
    """Part, its numbers (b, ...) and the token axis of each of their axes."""
    layers = layers_of(signals, spec.name)
    depth = None if layers is None else len(layers)
    if depth != spec.depth:
        raise CacheError(
            f"{spec.name!r} has {depth} layers, and had {spec.depth} when the cache was begun"
        )
    values: list[Any] = [signals[spec.name]] if layers is None else [layers[i] for i in spec.layers]
    padding = any("valid" in axis.tokens for axis in spec.axes)
    tokens = tokens_of(signals, spec.name, values[0], padding=padding)
    values = [prepared(x, padding=padding, averages_heads=spec.averages_heads) for x in values]
    if len(values[0].shape) == 0 or values[0].shape[0] != examples:
        raise CacheError(
            f"{spec.name!r} is {tuple(values[0].shape)} for {examples} examples: a cache stores "
            "signals whose first axis is the example"
        )
    if len(tokens) != len(spec.axes):
        raise CacheError(
            f"{spec.name!r} has {len(tokens)} token axes in this batch, and {len(spec.axes)} when "
            "the cache was begun"
        )
    for axis, one in zip(spec.axes, tokens, strict=True):
        axes[axis.name] = _Axis(axis, one, batch)
        yield from _tokens_of_axis(axis, one, details=spec.tokens)
    names = [axis.name for axis in spec.axes]
    pieces = [_checked_pieces(spec, i, x, tokens) for i, x in enumerate(values)]
    if any(piece.coding != "exact" for layer in spec.pieces for piece in layer.values()):
        found = measured_error(spec, pieces, values, tokens)
        bound = spec.bound if spec.bound is not None else sys.float_info.max
        if not found <= bound:
            raise CacheError(
                f"{spec.name!r} as {_codings(spec)} has a mean error of {found:.3g} in this batch, "
                f"and at most {bound:.3g} is allowed: choose a coding for it, "
                f'codings={{"{spec.name}": "exact"}}, or allow more, in a new cache'
            )
    for specs_of_layer, layer in zip(spec.pieces, pieces, strict=True):
        for key, piece in layer.items():
            yield from _encoded(specs_of_layer[key], piece, names)


def _checked_pieces(
    spec: SignalSpec, index: int, value: Any, tokens: tuple[Tokens, ...]
) -> dict[str, Piece]:
    stored = spec.pieces[index]
    vectors = spec.form != "products" and "query" in stored
    if isinstance(value, Attention):
        form = form_of(value, *(one.real for one in tokens))
        if spec.form != form and (spec.form == "products" or "used" in (form, spec.form)):
            raise CacheError(
                f"{spec.name!r} was written as {spec.form} when the cache was begun; in this batch "
                "biases or masks say more than its queries and keys do: fill a cache with "
                f'codings={{"{spec.name}": "map"}}'
            )
        if spec.form == "products" and value.scale != spec.scales[index]:
            raise CacheError(
                f"{spec.name!r} has the scale {value.scale}, and had {spec.scales[index]}"
            )
    pieces = pieces_of(spec.name, value, spec.form, vectors=vectors or "value" in stored)
    if set(pieces) != set(stored):
        raise CacheError(
            f"{spec.name!r} has {sorted(pieces)} in this batch, and had {sorted(stored)} when the "
            "cache was begun"
        )
    return pieces


def _tokens_of_axis(axis: AxisSpec, tokens: Tokens, *, details: bool) -> Any:
    facts = None if tokens.known is None else facts_of(tokens.known)
    if facts != axis.facts:
        raise CacheError(
            f"the tokens of {axis.signal!r} are {facts}, and were {axis.facts} "
            "when the cache was begun"
        )
    tensors = token_tensors(tokens, details=details)
    if set(tensors) != set(axis.tokens):
        raise CacheError(
            f"of the tokens of {axis.signal!r} this batch knows {sorted(tensors)}, "
            f"and the cache was begun with {sorted(axis.tokens)}"
        )
    for name, piece in tensors.items():
        yield from _encoded(axis.tokens[name], piece, [axis.name])


def _encoded(spec: PieceSpec, piece: Piece, names: Sequence[str]) -> Any:
    """The parts of one tensor, if it is as it was when the cache was begun."""
    of_axes = [None if i is None or i >= len(names) else names[i] for i in piece.axes]
    parts = coding(spec.coding).encode(piece.values)
    for part, x in zip(spec.parts, parts.values(), strict=True):
        named: tuple[str | None, ...] = tuple([*of_axes, *[None] * x.ndim][: x.ndim - 1])
        sizes = tuple(
            n if axis is None else axis for n, axis in zip(x.shape[1:], named, strict=True)
        )
        dtype = str(x.dtype).removeprefix("torch.")
        if sizes != part.sizes or dtype != part.dtype:
            raise CacheError(
                f"{part.name!r} is {dtype} {sizes} in this batch, and was {part.dtype} "
                f"{part.sizes} when the cache was begun"
            )
        yield part.name, raw(x), named


def _of_example(
    x: Any, example: int, names: tuple[str | None, ...], axes: Mapping[str, _Axis]
) -> Any:
    found = x[example]
    for dimension, name in enumerate(names):
        if name is None:
            continue
        taken, whole = axes[name].taken[example], axes[name].whole
        if len(taken) < whole:
            found = found.take(taken, axis=dimension)
    return found.reshape(-1) if found.flags.c_contiguous else found.ravel()


def _codings(spec: SignalSpec) -> str:
    return ", ".join(sorted({p.coding for layer in spec.pieces for p in layer.values()}))
