"""Codes as bits, few for frequent ones: range asymmetric numeral systems (Duda, 2013), map by map.

Each map is a stream of its own, so that a page decodes the one that is looked at. All streams are
written at once, step by step, which numpy does as quickly as a compiled loop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BITS = 12
_ONE = 1 << BITS
_LOW = 1 << 16  # a state below it takes 16 bits more

Frequencies = NDArray[np.int64]
"""``(contexts, codes)``: how often of 4096 times; 0 of codes that a context does not have."""


class Streams(NamedTuple):
    """Coded maps.

    Attributes:
        words: uint16, one map after another.
        lengths: how many words each map has.
    """

    words: NDArray[np.uint16]
    lengths: NDArray[np.int64]


def frequencies_of(counts: NDArray[np.int64]) -> Frequencies:
    """Counts ``(contexts, codes)`` as parts of 4096, none that occurs below 1.

    Examples:
        >>> frequencies_of(np.array([[3, 1, 0], [0, 0, 0]])).tolist()
        [[3072, 1024, 0], [4096, 0, 0]]
    """
    counts = counts.copy()
    counts[counts.sum(1) == 0, 0] = 1  # a context that never occurs
    total = counts.sum(1, keepdims=True)
    parts: Frequencies = np.maximum(counts * _ONE // total, counts > 0)
    for row in parts:  # what rounding left over or took too much
        while (lacking := _ONE - row.sum()) != 0:
            largest = row.argmax()
            row[largest] += max(lacking, -(row[largest] // 2))
    return parts


def bits_of(counts: NDArray[np.int64], frequencies: Frequencies) -> float:
    """How many bits codes take that occur so often."""
    occur = counts > 0
    return float((counts[occur] * (BITS - np.log2(frequencies[occur]))).sum())


def coded(
    codes: NDArray[np.uint8],
    contexts: NDArray[np.uint8],
    lengths: NDArray[np.int64],
    frequencies: Frequencies,
) -> Streams:
    """Codes as words.

    Args:
        codes: ``(n,)``, of one map after another.
        contexts: ``(n,)``: the row of ``frequencies`` for each.
        lengths: how many codes each map has.
        frequencies: ``(contexts, codes)``.
    """
    width = frequencies.shape[1]
    place = contexts.astype(np.int32) * width + codes
    frequency = frequencies.ravel().astype(np.uint16)[place]
    below = (np.cumsum(frequencies, 1) - frequencies).ravel().astype(np.uint16)[place]
    words = np.zeros(len(codes), np.uint16)
    written = np.zeros(len(codes), bool)
    starts = np.cumsum(lengths) - lengths
    longest_first = np.argsort(-lengths, kind="stable")
    first = starts[longest_first]
    ascending = np.sort(lengths)
    states = np.full(len(lengths), _LOW, np.uint64)
    for step in range(int(lengths.max(initial=0)) - 1, -1, -1):
        active = len(lengths) - int(np.searchsorted(ascending, step, side="right"))
        at = first[:active] + step
        x, f = states[:active], frequency[at].astype(np.uint64)
        full = x >= f << np.uint64(32 - BITS)
        words[at] = x  # the lower 16 bits; read only where one was written
        written[at] = full
        x = np.where(full, x >> np.uint64(16), x)
        quotient = x // f
        states[:active] = (quotient << np.uint64(BITS)) + (x - quotient * f) + below[at]
    last = np.empty_like(states)
    last[longest_first] = states
    return _joined(words, written, lengths, last)


def _joined(
    words: NDArray[np.uint16],
    written: NDArray[np.bool_],
    lengths: NDArray[np.int64],
    states: NDArray[np.uint64],
) -> Streams:
    """Each map's last state, upper half first, and then its words; nothing of an empty map."""
    before = np.concatenate([[0], np.cumsum(written)])
    ends = np.cumsum(lengths)
    counts = before[ends] - before[ends - lengths]
    filled = lengths > 0
    sizes = np.where(filled, counts + 2, 0)
    starts = np.cumsum(sizes) - sizes
    found = np.zeros(int(sizes.sum()), np.uint16)
    is_state = np.zeros(len(found), bool)
    for half, shift in enumerate((16, 0)):
        at = starts[filled] + half
        found[at] = states[filled] >> np.uint64(shift)
        is_state[at] = True
    found[~is_state] = words[written]
    return Streams(found, sizes)
