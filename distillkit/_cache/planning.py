"""How a recipe's signals are written: decided on the first batch, by measuring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._attention import Attention
from .._backbone.batch import SideOfBatch
from .._backbone.depth import positions
from .._backbone.signals import Signals
from ..errors import CacheError, OptionError
from .choices import Codings, check_named, codings_of, is_logits
from .coding import coding, log_probabilities_error, logits_error, relative_error
from .needs import Need, Needs
from .places import followed
from .reading import (
    Layer,
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
from .spec import AxisSpec, Form, PartSpec, PieceSpec, SignalSpec, Size
from .trials import compares_probabilities, reads_vectors


class Plan(NamedTuple):
    """One way to write a signal, with what it costs in this batch."""

    signal: SignalSpec
    bytes: float  # for each example
    error: float


def plan_signals(
    signals: Signals, needs: Needs, batch: SideOfBatch, error: float, codings: Codings
) -> tuple[SignalSpec, ...]:
    """How each signal is written in the fewest bytes, with a mean error of at most ``error``."""
    check_named(codings, needs)
    found = []
    for name, need in sorted(needs.items()):
        chosen = codings.get(name)
        plans = list(_plans(_given(name, signals, need, batch), error, chosen))
        if not plans:
            raise OptionError(
                f"{name!r} cannot be written as {chosen!r}: any tensor can as exact, float16, "
                "bfloat16 or int8, logits as top_k:8 to 512 (fewer than there are classes, and "
                "where losses compare nothing but probabilities), an attention as map, map:float16 "
                "or uint8"
            )
        found.append(min(plans, key=lambda plan: plan.bytes).signal)
    return tuple(found)


class _Given(NamedTuple):
    """One signal of the first batch.

    Attributes:
        name: of the signal.
        depth: how many layers it has; None: it has none.
        stored: the layers that are stored.
        values: of these layers.
        tokens: its token axes.
        axes: how they are written.
        need: what is needed of it.
        vectors: queries, keys and values are needed themselves.
        averages_heads: of an attention, the mean over heads is enough.
        normalised: it is logits, and nothing but their probabilities is compared.
    """

    name: str
    depth: int | None
    stored: tuple[int, ...]
    values: list[Any]
    tokens: tuple[Tokens, ...]
    axes: tuple[AxisSpec, ...]
    need: Need
    vectors: bool
    averages_heads: bool
    normalised: bool


def _given(name: str, signals: Signals, need: Need, batch: SideOfBatch) -> _Given:
    layers = layers_of(signals, name)
    depth = None if layers is None else len(layers)
    stored = (0,) if depth is None else positions(need.layers, depth)
    if not stored:
        raise CacheError(
            f"the recipe compares layers {need.layers} of {name!r}, and the teacher has {depth}"
        )
    values: list[Any] = [signals[name]] if layers is None else [layers[i] for i in stored]
    tokens = tokens_of(signals, name, values[0], padding=need.padding)
    vectors = isinstance(values[0], Attention) and any(
        reads_vectors(term, values[0], batch) for term in need.terms
    )
    logits = isinstance(values[0], Tensor) and is_logits(name)
    normalised = logits and all(
        compares_probabilities(term, values[0], batch) for term in need.terms
    )
    as_used = any(isinstance(x, Attention) and x.is_as_used for x in values)
    averages = need.averages_heads and not vectors and not as_used
    values = [prepared(x, padding=need.padding, averages_heads=averages) for x in values]
    axes = _axes(name, tokens, need, batch)
    return _Given(name, depth, stored, values, tokens, axes, need, vectors, averages, normalised)


def _plans(given: _Given, error: float, chosen: str | None) -> Iterator[Plan]:
    """Every way that stays within the error; the exact ones among them always."""
    for form in _forms(given):
        pieces = [
            pieces_of(given.name, value, form, vectors=given.vectors) for value in given.values
        ]
        allowed = codings_of(form, pieces[0], normalised=given.normalised)
        if chosen is not None:
            if chosen in allowed:
                yield _plan(given, form, allowed[chosen], pieces, None)
            continue
        for one in sorted(set(allowed.values())) if error > 0 else ["exact"]:
            plan = _plan(given, form, one, pieces, error)
            # other batches have other errors: half of what is allowed leaves them room
            if one == "exact" or plan.error <= error / 2:
                yield plan


def _forms(given: _Given) -> list[Form]:
    if isinstance(given.values[0], Tensor):
        return ["tensor"]
    rows, keys = (one.real for one in given.tokens)
    found = {form_of(value, rows, keys) for value in given.values}
    if "used" in found:
        return ["used"]
    # the map can always be written; queries and keys only where they say all of it
    return ["log_probabilities"] if len(found) > 1 else sorted({*found, "log_probabilities"})


def _plan(
    given: _Given,
    form: Form,
    chosen: str,
    pieces: list[dict[str, Piece]],
    bound: float | None,
) -> Plan:
    specs = []
    for position, layer in zip(given.stored, pieces, strict=True):
        stem = given.name if given.depth is None else f"{given.name}/{position}"
        specs.append({key: _piece(stem, key, x, chosen, given.axes) for key, x in layer.items()})
    signal = SignalSpec(
        name=given.name,
        form=form,
        depth=given.depth,
        layers=given.stored,
        axes=given.axes,
        pieces=tuple(specs),
        scales=tuple(x.scale for x in given.values) if form == "products" else (),
        temperatures=given.need.temperatures,
        bound=bound,
        averages_heads=given.averages_heads,
        tokens=given.need.tokens,
    )
    worst = 0.0
    if chosen != "exact":
        worst = measured_error(signal, pieces, given.values, given.tokens)
        changed = [
            {key: piece.model_copy(update={"error": worst}) for key, piece in layer.items()}
            for layer in specs
        ]
        signal = signal.model_copy(update={"pieces": tuple(changed)})
    return Plan(signal, bytes_of(signal, given.tokens), worst)


def measured_error(
    signal: SignalSpec,
    pieces: list[dict[str, Piece]],
    values: list[Layer],
    tokens: tuple[Tokens, ...],
) -> float:
    """The mean error of a signal's coding on one batch: of the worst layer.

    Of logits and attention it is the KL divergence, in nats; of other tensors that of the root mean
    square.
    """
    worst = 0.0
    for specs, layer, value in zip(signal.pieces, pieces, values, strict=True):
        decoded = {key: _through(specs[key], piece.values) for key, piece in layer.items()}
        worst = max(worst, _error(signal, layer, decoded, value, tokens))
    return worst


def _error(
    signal: SignalSpec,
    given: Mapping[str, Piece],
    decoded: Mapping[str, Tensor],
    value: Layer,
    tokens: tuple[Tokens, ...],
) -> float:
    if any(
        not torch.equal(x.values.isfinite(), decoded[key].isfinite()) for key, x in given.items()
    ):
        return math.inf
    if isinstance(value, Tensor):
        one, other = given[""].values, decoded[""]
        if tokens:
            real = tokens[0].real
            one, other = one[real], other[real]
        if is_logits(signal.name):
            return max(logits_error(one, other, t) for t in signal.temperatures)
        return relative_error(one, other)
    if signal.form == "log_probabilities":
        log_p = given["log_p"].values, decoded["log_p"]
        return max(log_probabilities_error(*log_p, t) for t in signal.temperatures)
    if signal.form == "used":
        return relative_error(given["used"].values, decoded["used"])
    rows, keys = (one.real for one in tokens)
    maps = [
        Attention(
            one["query"].transpose(1, 2), one["key"].transpose(1, 2), scale=value.scale,
            mask=keys[:, None, None], rows=rows,
        ).scores().log_softmax(-1).nan_to_num(-math.inf)
        for one in ({key: x.values for key, x in given.items()}, decoded)
    ]  # fmt: skip
    return max(log_probabilities_error(maps[0], maps[1], t) for t in signal.temperatures)


def _through(spec: PieceSpec, values: Tensor) -> Tensor:
    one = coding(spec.coding)
    width = values.shape[-1]
    return one.decode(one.encode(values), values.dtype, width)


def _piece(stem: str, key: str, piece: Piece, chosen: str, axes: tuple[AxisSpec, ...]) -> PieceSpec:
    """How one tensor is written."""
    of_axes = [None if i is None else axes[i].name if i < len(axes) else None for i in piece.axes]
    sizes = _sizes(piece.values, of_axes)
    name = f"{stem}/{key}" if key else stem
    one = coding(chosen)
    nothing = one.absent(piece.absent)
    parts = [
        PartSpec(
            name=f"{name}~{part}" if part else name,
            dtype=_dtype_name(x),
            sizes=_sizes(x, of_axes),
            absent=nothing[part],
        )
        for part, x in one.encode(piece.values).items()
    ]
    return PieceSpec(
        name=name, coding=chosen, dtype=_dtype_name(piece.values), sizes=sizes, parts=tuple(parts)
    )


def _sizes(x: Tensor, of_axes: list[str | None]) -> tuple[Size, ...]:
    # a part may have more axes at the end than the tensor, or fewer
    named = [*of_axes, *[None] * x.ndim]
    return tuple(
        size if axis is None else axis for size, axis in zip(x.shape[1:], named, strict=False)
    )


def _dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _axes(
    name: str, tokens: tuple[Tokens, ...], need: Need, batch: SideOfBatch
) -> tuple[AxisSpec, ...]:
    found = []
    for i, one in enumerate(tokens):
        known, own = one.known, f"{name}:{i}"
        axis = AxisSpec(name=own)
        tensors = {
            key: _piece(f"{own}/{key}", "", piece, "exact", (axis,))
            for key, piece in token_tensors(one, details=need.tokens).items()
        }
        found.append(
            AxisSpec(
                name=own,
                follows=followed(one, batch),
                facts=None if known is None else facts_of(known),
                tokens=tensors,
            )
        )
    return tuple(found)


def bytes_of(signal: SignalSpec, tokens: tuple[Tokens, ...]) -> float:
    """The mean bytes of an example of this batch."""
    counts = {
        axis.name: one.real.sum(-1).double() for axis, one in zip(signal.axes, tokens, strict=True)
    }
    total = 0.0
    for part in signal.every_part():
        size: Any = torch.ones((), dtype=torch.float64)
        for one in part.sizes:
            size = size * (counts[one].cpu() if isinstance(one, str) else one)
        itemsize: int = getattr(torch, part.dtype).itemsize
        total += itemsize * float(size.mean()) if size.numel() else 0.0
    return total
