"""The mean of a group of a teacher's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from .._attention import Attention, widen
from ..errors import ShapeError


def mean_of_layers(term: str, layers: Sequence[Any]) -> Any:
    """The mean of hidden states, or of attentions.

    That of hidden states ``(b, n, d)`` is theirs, in float32 at least. That of attentions
    ``(b, h, q, k)`` is the mean of their matrices of probabilities, head by head: a key counts
    where one of them keeps it, a row where all of them count it and have a key left for it. It is
    known by its map alone, without queries, and is computed when a loss asks for it.

    Args:
        term: what errors call the term.
        layers: of one signal; one layer is itself.

    Raises:
        ShapeError: layers of unequal shapes, or with unequal heads.
    """
    if len(layers) == 1:
        return layers[0]
    shapes = list(dict.fromkeys(tuple(one.shape) for one in layers))
    if len(shapes) > 1:
        raise ShapeError(
            f"term {term!r}: a mean of layers needs layers of one shape; got "
            f"{', '.join(map(str, shapes))}. Pair them one by one, or choose one of them: "
            'match = "best" or "uniform"'
        )
    if isinstance(layers[0], Tensor):
        total = reduce(torch.add, map(widen, layers))
        return total / len(layers)
    return _mean_attention(layers)


def _mean_attention(layers: Sequence[Attention]) -> Attention:
    if any(one.is_as_used for one in layers):
        # weights that need not add up to 1: their mean is weights of that kind, too
        def used() -> Tensor:
            total = reduce(torch.add, (one.probabilities() for one in layers)) / len(layers)
            return torch.where(_counted_by_all(layers)[..., None], total, 0)

        return Attention.replayed(layers[0].shape, used=used, rows=_rows(layers))
    return Attention.replayed(layers[0].shape, scores=lambda: _log_mean(layers), rows=_rows(layers))


def _log_mean(layers: Sequence[Attention]) -> Tensor:
    """The logarithm of the mean of softmaxes, where the smallest do not become 0."""
    total: Tensor | None = None
    for one in layers:
        scores = one.scores()
        kept = scores > -torch.inf
        some = kept.any(-1, keepdim=True)
        logs = torch.where(some, scores, 0).log_softmax(-1)
        total = logs if total is None else _log_sum(total, logs)
    assert total is not None
    counted = _counted_by_all(layers)[..., None]
    return torch.where(counted, total - math.log(len(layers)), -torch.inf)


def _log_sum(one: Tensor, other: Tensor) -> Tensor:
    """``log(exp(one) + exp(other))``, of which torch has no gradient where both are -inf."""
    dropped = (one == -torch.inf) & (other == -torch.inf)
    summed = torch.logaddexp(torch.where(dropped, 0, one), torch.where(dropped, 0, other))
    return torch.where(dropped, -torch.inf, summed)


def _counted_by_all(layers: Sequence[Attention]) -> Tensor:
    return reduce(torch.logical_and, (one.valid_rows() for one in layers))


def _rows(layers: Sequence[Attention]) -> Tensor | None:
    """The rows that all of them count."""
    given = [one.rows for one in layers if one.rows is not None]
    return reduce(torch.logical_and, given) if given else None
