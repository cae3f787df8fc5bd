"""How often each code occurs, by what its neighbours say of it and by how sharp its map is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .entropy import Frequencies, bits_of, frequencies_of
from .prediction import TOP, Neighbours, Offset, Rows, fitted, neighbours, predicted

CONTEXTS, CLASSES = 32, 8
_CODES_PER_ENTRY = 200  # of a context's frequencies; with fewer it costs more than it saves


class Model(NamedTuple):
    """What is known of the codes of one class of maps.

    Attributes:
        weights: of their neighbours, and a constant.
        bounds: predictions at which the next context begins, ascending.
        frequencies: ``(contexts, codes)``.
        bits: what all codes take that it was made of.
    """

    weights: Sequence[int]
    bounds: Sequence[int]
    frequencies: Frequencies
    bits: float


class Statistics(NamedTuple):
    """What layers of one signal share.

    Attributes:
        own: offsets of the neighbours in the same map.
        other: offsets of those in the reference.
        models: one for each class of maps, from sharp ones to even ones.
    """

    own: Sequence[Offset]
    other: Sequence[Offset]
    models: Sequence[Model]

    def frequencies(self) -> Frequencies:
        """Those of all classes, one below another."""
        return np.concatenate([one.frequencies for one in self.models])


class Places(NamedTuple):
    """Which frequencies the codes of one layer have.

    Attributes:
        classes: uint8 ``(maps,)``: the model of each map.
        contexts: uint16 ``(n, k)``: the row of :meth:`Statistics.frequencies` of each code.
    """

    classes: NDArray[np.uint8]
    contexts: NDArray[np.uint16]


def statistics_of(
    layers: Sequence[Rows], strides: Offset, levels: int
) -> tuple[Statistics, list[Places]]:
    """What some layers have in common, and where their codes stand in it."""
    which = neighbours(strides, referred=layers[0].reference is not None)
    classes = _classes(layers, levels)
    found = [np.zeros(one.codes.shape, np.uint16) for one in layers]
    models: list[Model] = []
    first = 0
    for number in range(1 + max(int(one.max(initial=0)) for one in classes)):
        chosen = [own[one.lanes] == number for own, one in zip(classes, layers, strict=True)]
        parts = [one.chosen(rows) for one, rows in zip(layers, chosen, strict=True)]
        model, contexts = _model(parts, which, levels)
        for one, rows, own in zip(found, chosen, contexts, strict=True):
            one[rows] = own + np.uint16(first)
        first += len(model.frequencies)
        models.append(model)
    placed = [Places(own, one) for own, one in zip(classes, found, strict=True)]
    return Statistics(*which, models), placed


def _classes(layers: Sequence[Rows], levels: int) -> list[NDArray[np.uint8]]:
    """The class of each map by its mean code, which is small where attention is sharp."""
    total = sum(one.codes.size for one in layers)
    count = max(1, min(CLASSES, int(total // (_CODES_PER_ENTRY * (levels + 1) * CONTEXTS))))
    means = [_means(one) for one in layers]
    filled = np.concatenate([own[own >= 0] for own in means])
    if count == 1 or not len(filled):
        return [np.zeros(one.maps, np.uint8) for one in layers]
    bounds = np.unique(np.quantile(filled, np.linspace(0, 1, count + 1)[1:-1]))
    return [np.searchsorted(bounds, own).astype(np.uint8) for own in means]


def _means(rows: Rows) -> NDArray[np.float64]:
    """The mean code of each map, -1 of one without any."""
    size = rows.codes.shape[1]
    sums = np.bincount(rows.lanes, rows.codes.sum(1), rows.maps)
    counts = np.bincount(rows.lanes, minlength=rows.maps) * size
    return np.where(counts > 0, sums / np.maximum(counts, 1), -1.0)


def _model(
    parts: Sequence[Rows], which: Neighbours, levels: int
) -> tuple[Model, list[NDArray[np.uint16]]]:
    weights = fitted(parts, which, levels)
    said = [predicted(one, which, weights) for one in parts]
    bounds = _bounds(said, levels)
    table = np.searchsorted(bounds, np.arange(TOP + 1), side="right").astype(np.uint16)
    contexts = [table[one] for one in said]
    shape = len(bounds) + 1, levels + 1
    counts = np.zeros(shape, np.int64)
    for one, own in zip(parts, contexts, strict=True):
        place = own.astype(np.int32) * shape[1] + one.codes
        counts += np.bincount(place.ravel(), minlength=counts.size).reshape(shape)
    frequencies = frequencies_of(counts)
    return Model(weights, bounds, frequencies, bits_of(counts, frequencies)), contexts


def _bounds(said: Sequence[NDArray[np.int32]], levels: int) -> list[int]:
    """Predictions that part all into contexts of equally many."""
    total = sum(one.size for one in said)
    count = max(1, min(CONTEXTS, int(total // (_CODES_PER_ENTRY * (levels + 1)))))
    if count == 1:
        return []
    below = np.cumsum(sum(np.bincount(one.ravel(), minlength=TOP + 1) for one in said))
    parts = np.arange(1, count) * (total / count)
    # A context begins above its bound: many predictions are 0, and have a context of their own.
    return sorted({int(x) + 1 for x in np.searchsorted(below, parts)})
