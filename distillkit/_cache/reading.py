"""A signal's tensors as they are written: tokens first, and which of them are real."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._attention import Attention
from .._backbone.axis import TokenAxis
from .._backbone.signals import Signals
from ..errors import CacheError
from .spec import Form

Layer = Tensor | Attention


class Piece(NamedTuple):
    """One tensor of a signal.

    Attributes:
        values: ``(b, ...)``.
        axes: for each axis but the first, which token axis of the signal it is; None: none of them.
        absent: what stands where an example has no token.
    """

    values: Tensor
    axes: tuple[int | None, ...]
    absent: float = 0.0


class Tokens(NamedTuple):
    """One token axis of a signal in a batch.

    Attributes:
        real: ``(b, n)``, which are stored.
        known: what is known of them.
        valid: ``(b, n)``, which of the stored ones are no padding; None: all.
    """

    real: Tensor
    known: TokenAxis | None
    valid: Tensor | None = None


def layers_of(signals: Signals, name: str) -> Sequence[Layer] | None:
    """A signal's layers; None for one without."""
    value = signals[name]
    return None if isinstance(value, (Tensor, Attention)) else value


def tokens_of(signals: Signals, name: str, layer: Layer, *, padding: bool) -> tuple[Tokens, ...]:
    """The token axes of a signal, one layer of which is given.

    With ``padding``, a term counts padded positions too: they are stored like any other.
    """
    known = signals.axes(name)
    if isinstance(layer, Attention):
        query, key = known if len(known) == 2 else (None, None)
        b, _, q, k = layer.shape
        rows = _real(query, layer.rows, (b, q), layer.device)
        keys = _real(key, None if key is not None else _used_keys(layer), (b, k), layer.device)
        if padding:
            return Tokens(torch.ones_like(rows), query, rows), Tokens(keys, key)
        return Tokens(rows, query), Tokens(keys, key)
    mask, axis = signals.mask(name), known[0] if known else None
    if mask is None and axis is not None:
        mask = axis.valid
    if layer.ndim < 3 or (mask is None and axis is None):
        return ()
    everything = torch.ones(layer.shape[:2], dtype=torch.bool, device=layer.device)
    if mask is None:
        mask = everything
    if mask.shape[1] != layer.shape[1]:
        return ()
    mask = mask.expand(layer.shape[:2])
    return (Tokens(everything, axis, mask) if padding else Tokens(mask, axis),)


def prepared(layer: Layer, *, padding: bool, averages_heads: bool) -> Layer:
    """A layer with what counts of it, and of the heads no more than is compared."""
    if isinstance(layer, Tensor):
        return layer
    attention = layer.with_rows(None) if padding else layer
    if not averages_heads:
        return attention
    # a row counts where every head keeps it, as losses say that average over heads
    rows = attention.valid_rows().all(1, keepdim=True)
    mean = attention.probabilities().mean(1, keepdim=True)
    return Attention.from_probabilities(mean, rows=rows)


def _real(
    known: TokenAxis | None, mask: Tensor | None, shape: tuple[int, int], device: torch.device
) -> Tensor:
    """The tokens that are no padding, ``(b, n)``: as the layout says, or else as a mask does."""
    if known is not None and known.valid is not None:
        return known.valid.to(device).expand(shape)
    if known is not None or mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    return mask.any(1).to(device).expand(shape)


def _used_keys(attention: Attention) -> Tensor | None:
    """The keys that a head keeps for a query, ``(b, 1, k)``; None: all of them."""
    keep = attention.keep()
    return None if keep is None else keep.any(2).any(1, keepdim=True)


def form_of(attention: Attention, rows: Tensor, keys: Tensor) -> Form:
    """How an attention can be written: by queries and keys, wherever they say all of it."""
    if attention.is_replayed:
        return "used" if attention.is_as_used else "log_probabilities"
    keep = attention.keep()
    outer = rows[:, None, :, None] & keys[:, None, None]
    if keep is not None and not torch.equal(keep & outer, outer.expand_as(keep & outer)):
        return "log_probabilities"
    bias = attention.bias
    if bias is not None and bool((outer & (bias != 0)).any()):
        return "log_probabilities"
    return "products"


def pieces_of(name: str, layer: Layer, form: Form, *, vectors: bool) -> dict[str, Piece]:
    """The tensors that a layer is written by.

    Args:
        name: of the signal.
        layer: of a signal.
        form: how an attention is written.
        vectors: also write queries, keys and values that the form has no need of.

    Raises:
        CacheError: a map with NaN, which would be read as one of rows that do not count.
    """
    if isinstance(layer, Tensor):
        return {"": Piece(layer, (0, *[None] * (layer.ndim - 2)))}
    found: dict[str, Piece] = {}
    if form == "used":
        found["used"] = Piece(layer.probabilities().transpose(1, 2), (0, None, 1))
    if form == "log_probabilities":
        log_p = _log_probabilities(name, layer).transpose(1, 2)
        found["log_p"] = Piece(log_p, (0, None, 1), -math.inf)
    if form == "products" or vectors:
        found["query"] = Piece(layer.query.transpose(1, 2), (0, None, None))
        found["key"] = Piece(layer.key.transpose(1, 2), (1, None, None))
    if vectors and layer.value is not None:
        found["value"] = Piece(layer.value.transpose(1, 2), (1, None, None))
    return found


def _log_probabilities(name: str, attention: Attention) -> Tensor:
    scores = attention.scores()
    if bool(scores.isnan().any()):
        raise CacheError(
            f"{name!r} has scores that are NaN: the teacher's forward has overflown or its weights "
            "are damaged; run it in bfloat16 or float32, or without autocast"
        )
    rows = (scores > -torch.inf).any(-1, keepdim=True)
    return torch.where(rows, torch.where(rows, scores, 0).log_softmax(-1), -torch.inf)


def facts_of(axis: TokenAxis) -> dict[str, Any]:
    """What is the same for all examples; lists, as JSON has them."""
    found: dict[str, Any] = {}
    for one in fields(axis):
        value = getattr(axis, one.name)
        if value is not None and not isinstance(value, Tensor) and one.name not in _OF_A_BATCH:
            found[one.name] = _plain(value)
    return found


def token_tensors(tokens: Tokens, *, details: bool) -> dict[str, Piece]:
    """What is known of each token, ``(b, m, ...)``: padding, special; ``details``: all else."""
    found = {} if tokens.valid is None else {"valid": Piece(tokens.valid, (0,))}
    b, m = tokens.real.shape
    for one in fields(TokenAxis):
        value = getattr(tokens.known, one.name, None)
        if not isinstance(value, Tensor) or one.name in (*_OF_A_BATCH, "valid", "grid"):
            continue
        if not details and one.name != "special":
            continue
        if value.ndim < 2 or value.shape[0] not in (1, b) or value.shape[1] != m:
            raise CacheError(
                f"the tokens' {one.name} are {tuple(value.shape)}, and there are {m} tokens in {b} "
                "examples"
            )
        full = value.expand(b, *value.shape[1:])
        found[one.name] = Piece(full, (0, *[None] * (value.ndim - 2)))
    return found


_OF_A_BATCH = ("positions", "length")  # another sequence, in another batch, has them elsewhere


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


def same_names(what: str, given: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse a batch whose tensors are others than those that the cache was begun with."""
    if set(given) != set(stored):
        raise CacheError(
            f"{what} is known by {sorted(given) or 'nothing'} in this batch, and the cache was "
            f"begun with {sorted(stored) or 'nothing'}"
        )
