"""Maps as little text: whole numbers, as finely as a budget allows, in as few bits as they take."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .contexts import Model, Places, Statistics, statistics_of
from .entropy import coded
from .maps import Distances, Maps
from .prediction import Offset, Rows, rows_of
from .steps import Errors, Steps, errors_of, steps_of

LEVELS = (254, 126, 62, 46, 36, 28, 24, 20, 18, 16, 14, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2)
"""How finely numbers are told apart: the first that fits is taken, else the last."""

_SAMPLE = 4  # examples by which a size is foretold
_HTML = "&<>", ",.:"
_TO_HTML = bytes.maketrans(*(one.encode() for one in _HTML))


class Layer(NamedTuple):
    """One side of one layer, and its distance from the teacher where it has one.

    Attributes:
        maps: the numbers.
        distances: how far a student's are from the teacher's.
        family: layers of one family share statistics, and are of the same tokens.
        reference: the position of a layer before it, of as many heads and the same tokens, whose
            maps are probably like these; None in all layers of a family, or in none.
        strides: how many tokens lie from one row of patches to the next, among rows and keys.
    """

    maps: Maps
    distances: Distances | None
    family: str = ""
    reference: int | None = None
    strides: Offset = (2, 2)


class Coded(NamedTuple):
    """Layers as text.

    Attributes:
        levels: the largest code of a number.
        texts: each layer.
        facts: what a page needs to read them, as JSON.
        errors: no number is farther than this from the exact one.
    """

    levels: int
    texts: Sequence[str]
    facts: Mapping[str, Any]
    errors: Errors


class _Attempt(NamedTuple):
    """All layers at one fineness, before they are written."""

    steps: Sequence[Steps]
    rows: Sequence[Rows]
    statistics: Sequence[Statistics]  # each of many layers
    positions: Sequence[int]  # of each layer's in them
    places: Sequence[Places]


def encoded(layers: Sequence[Layer], budget: int) -> Coded:
    """The layers as finely as the budget allows; or the coarsest.

    Args:
        layers: what to encode; a layer's reference stands before it.
        budget: how many characters all of it may take.
    """
    first = _first_that_fits(layers, budget)
    for levels in LEVELS[first:]:
        attempt = _attempt(layers, levels)
        texts = _texts(layers, attempt)
        facts = _facts(layers, attempt)
        models = sum(len(one["frequencies"]) for key in facts["models"] for one in key["classes"])
        if sum(map(len, texts)) + models <= budget or levels == LEVELS[-1]:
            break
    errors = [
        errors_of(steps, one.maps.probabilities)
        for steps, one in zip(attempt.steps, layers, strict=True)
    ]
    most = (max((one[i] for one in errors), default=0.0) for i in range(2))
    return Coded(levels, texts, facts, Errors(*most))


def text_of_bytes(data: bytes) -> str:
    """Bytes as text that HTML, an attribute and JSON hold unchanged: 5 characters of 4 bytes.

    Examples:
        >>> text_of_bytes(bytes([0, 255, 128]))
        '0RMm'
    """
    return base64.b85encode(data).translate(_TO_HTML).decode()


# ------------------------------------------------------------------------------------ fineness


def _first_that_fits(layers: Sequence[Layer], budget: int) -> int:
    """The position of the finest levels that a few examples foretell to fit."""
    low, high = 0, len(LEVELS) - 1
    while low < high:
        middle = (low + high) // 2
        if _foretold(layers, LEVELS[middle]) <= budget:
            high = middle
        else:
            low = middle + 1
    return low


def _foretold(layers: Sequence[Layer], levels: int) -> float:
    """About how many characters the layers take."""
    examples = max((len(one.maps.counts) for one in layers), default=0)
    every = max(1, examples // _SAMPLE)
    sample = [_taken(one, every) for one in layers]
    attempt = _attempt(sample, levels)
    side = sum(
        len(zlib.compress(_side_of(one, steps)))
        for one, steps in zip(sample, attempt.steps, strict=True)
    )
    side_of_all = side * examples / max(1, len(range(0, examples, every)))
    told = sum(int(one.maps.counts.sum()) * one.maps.probabilities.shape[-1] for one in layers)
    taken = sum(one.codes.size for one in attempt.rows)
    models = [model for one in attempt.statistics for model in one.models]
    bits = sum(one.bits for one in models) * told / max(1, taken)
    return 1.25 * (side_of_all + bits / 8 + sum(len(_packed(one)) for one in models))


def _taken(layer: Layer, every: int) -> Layer:
    maps = Maps(*(one[::every] for one in layer.maps))
    distances = layer.distances
    if distances is not None:
        distances = Distances(*(one[::every] for one in distances))
    return layer._replace(maps=maps, distances=distances)


def _attempt(layers: Sequence[Layer], levels: int) -> _Attempt:
    steps = [steps_of(*one.maps, levels) for one in layers]
    rows = [
        rows_of(own, None if one.reference is None else steps[one.reference])
        for own, one in zip(steps, layers, strict=True)
    ]
    families = list(dict.fromkeys(one.family for one in layers))
    positions = [families.index(one.family) for one in layers]
    statistics = []
    places: list[Places | None] = [None] * len(layers)
    for position in range(len(families)):
        members = [i for i, one in enumerate(positions) if one == position]
        own, placed = statistics_of([rows[i] for i in members], layers[members[0]].strides, levels)
        statistics.append(own)
        for i, one in zip(members, placed, strict=True):
            places[i] = one
    return _Attempt(steps, rows, statistics, positions, [one for one in places if one is not None])


# ----------------------------------------------------------------------------------------- text


def _texts(layers: Sequence[Layer], attempt: _Attempt) -> list[str]:
    """Of each layer: how long the next part is, what is deflated, and the streams of its maps."""
    before = np.cumsum([0] + [len(one.frequencies()) for one in attempt.statistics])
    contexts = [
        places.contexts.ravel() + before[position].astype(np.uint16)
        for places, position in zip(attempt.places, attempt.positions, strict=True)
    ]
    told = [steps.told().sum(-1).ravel() * steps.codes.shape[-1] for steps in attempt.steps]
    streams = coded(
        np.concatenate([one.codes.ravel() for one in attempt.rows]),
        np.concatenate(contexts),
        np.concatenate(told),
        np.concatenate([one.frequencies() for one in attempt.statistics]),
    )
    ends = np.cumsum([len(one) for one in told])[:-1]
    lengths = np.split(streams.lengths, ends)
    words = np.split(streams.words, np.cumsum([one.sum() for one in lengths])[:-1])
    texts = []
    for i, one in enumerate(layers):
        places = attempt.places[i].classes.tobytes() + lengths[i].astype("<u4").tobytes()
        side = zlib.compress(_side_of(one, attempt.steps[i]) + places, 9)
        size = np.array([len(side)], "<u4").tobytes()
        texts.append(text_of_bytes(size + side + words[i].astype("<u2").tobytes()))
    return texts


def _side_of(layer: Layer, steps: Steps) -> bytes:
    """Exponents, states, divergences and rows that are compared, one after another."""
    parts = [_planes(steps.exponents), steps.states.tobytes()]
    if layer.distances is not None:
        # bfloat16 are the upper halves of float32, which any language reads
        kl = layer.distances.kl.to(torch.bfloat16).view(torch.int16).numpy()
        parts += [_planes(kl.view(np.uint16)), _as_bytes(layer.distances.counts)]
    return b"".join(parts)


def _as_bytes(mask: Tensor) -> bytes:
    return mask.numpy().astype(np.uint8).tobytes()


def _planes(numbers: NDArray[np.uint16]) -> bytes:
    """The upper bytes of all, which are alike, and then the lower ones: they deflate better."""
    upper: bytes = (numbers >> 8).astype(np.uint8).tobytes()
    return upper + (numbers & 255).astype(np.uint8).tobytes()


def _packed(model: Model) -> bytes:
    return zlib.compress(_planes(model.frequencies.astype(np.uint16)), 9)


def _facts(layers: Sequence[Layer], attempt: _Attempt) -> dict[str, Any]:
    models = [
        {
            "own": one.own,
            "other": one.other,
            "classes": [
                {
                    "weights": model.weights,
                    "bounds": model.bounds,
                    "frequencies": text_of_bytes(_packed(model)),
                }
                for model in one.models
            ],
        }
        for one in attempt.statistics
    ]
    listed = [
        {
            "model": position,
            "reference": one.reference,
            "shape": list(one.maps.probabilities.shape),
            "divergences": 0 if one.distances is None else one.distances.kl.shape[1],
        }
        for position, one in zip(attempt.positions, layers, strict=True)
    ]
    return {"models": models, "layers": listed}
