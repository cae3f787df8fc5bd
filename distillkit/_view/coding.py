"""Maps as few bytes: square roots in 8 bits or fewer, deflated, as text that a page can hold."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .maps import Distances, Maps

LEVELS = (254, 126, 62, 30)
"""How finely numbers are told apart; 255 is NaN. The first that fits is taken, else the last: with
fewer, colours would show steps that no model made."""

_SAMPLE = 4  # layers by which a size is foretold


class Layer(NamedTuple):
    """One side of one layer, and its distance from the teacher where it has one."""

    maps: Maps
    distances: Distances | None


class Coded(NamedTuple):
    """Layers as text.

    Attributes:
        levels: the largest code of a number.
        texts: base64 of each layer's deflated bytes.
        tolerance: no number is farther than this from the exact one.
    """

    levels: int
    texts: Sequence[str]
    tolerance: float


def encoded(layers: Sequence[Layer], budget: int, levels: int | None = None) -> Coded:
    """The layers as finely as the budget allows, as a sample of them foretells; or the coarsest.

    Args:
        layers: what to encode.
        budget: how many characters all of it may take, about.
        levels: how finely, whatever it takes.
    """
    if levels is None:
        levels = _affordable(layers, budget)
    texts = [_text_of(x, levels) for x in layers]
    scales = [float(s.max()) for s in map(_scales_of_layer, layers) if s.numel()]
    largest = max(scales, default=0.0)
    half = 0.5 / levels
    return Coded(levels, texts, largest * (2 * half + half * half))


def _affordable(layers: Sequence[Layer], budget: int) -> int:
    sample = layers[:: max(1, len(layers) // _SAMPLE)]
    for finer in LEVELS:
        foretold = sum(len(_text_of(x, finer)) for x in sample) / max(1, len(sample))
        if foretold * len(layers) <= budget:
            return finer
    return LEVELS[-1]


def _text_of(layer: Layer, levels: int) -> str:
    return base64.b64encode(zlib.compress(_bytes_of(layer, levels))).decode()


def scales_of(probabilities: Tensor) -> Tensor:
    """The largest finite number of each map, ``(b, h)``; 1 of a map of zeros."""
    b, h, q, k = probabilities.shape
    if q * k == 0:
        return probabilities.new_ones(b, h)
    finite = torch.where(probabilities.isfinite(), probabilities, 0)
    largest = finite.flatten(2).amax(-1)
    return torch.where(largest > 0, largest, 1)


def _scales_of_layer(layer: Layer) -> Tensor:
    return scales_of(layer.maps.probabilities)


def codes_of(probabilities: Tensor, scales: Tensor, levels: int) -> Tensor:
    r"""Whole numbers ``(b, h, q, k)``: :math:`L \sqrt{p / s}` rounded; 255 of NaN.

    The square root spends the codes where most of the probabilities are, near 0: an error is at
    most ``s / L`` at the largest and falls with the root of the number.
    """
    part = (probabilities / scales[..., None, None]).clamp(0, 1)
    codes = (part.sqrt() * levels).round()
    return torch.where(codes.isnan(), 255, codes).to(torch.uint8)


def _bytes_of(layer: Layer, levels: int) -> bytes:
    """Scales, divergences, codes, rows that count, rows that are compared, one after another."""
    probabilities, counts = (x.cpu() for x in layer.maps)
    scales = scales_of(probabilities)
    parts = [scales.numpy().astype("<f4").tobytes()]
    if layer.distances is not None:
        # bfloat16 are the upper halves of float32, which any language reads
        kl = layer.distances.kl.cpu().to(torch.bfloat16).view(torch.int16)
        parts.append(kl.numpy().astype("<i2").tobytes())
    parts.append(codes_of(probabilities, scales, levels).numpy().tobytes())
    parts.append(counts.numpy().astype(np.uint8).tobytes())
    if layer.distances is not None:
        parts.append(layer.distances.counts.cpu().numpy().astype(np.uint8).tobytes())
    return b"".join(parts)
