r"""Probabilities as small whole numbers: how far each lies up to the largest of its row.

A row's largest number is kept apart, on a scale of logarithms. What the others are of it, ``x`` in
[0, 1], becomes :math:`L (\sqrt x + x) / 2`, rounded. A panel colours numbers by what they are of
the largest that it shows, so that this is the precision that is seen; the root keeps small numbers,
which are most, apart from 0, and the straight part halves the error of the large ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

COUNTS, NAN = 1, 2
"""Bits of a row's state: it counts for a loss; a number of it is NaN or infinite."""

_LAST = 65535  # of an exponent
_TINY = 1e-300


class Steps(NamedTuple):
    """One side of one layer as whole numbers.

    Attributes:
        codes: ``(b, h, q, k)`` uint8, 0 to ``levels``; 0 in rows that are not told.
        exponents: ``(b, h, q)`` uint16 e: a row's largest number is ``2 ** (-e / (2 * levels))``.
        states: ``(b, h, q)`` uint8, bits ``COUNTS`` and ``NAN``.
        levels: the largest code.
    """

    codes: NDArray[np.uint8]
    exponents: NDArray[np.uint16]
    states: NDArray[np.uint8]
    levels: int

    def told(self) -> NDArray[np.bool_]:
        """Rows ``(b, h, q)`` whose numbers are kept: they count, and all of them are finite."""
        found: NDArray[np.bool_] = self.states == COUNTS
        return found


class Errors(NamedTuple):
    """How far the kept numbers are from the exact ones, at most.

    Attributes:
        absolute: the largest difference.
        relative: the largest difference as a part of the largest number of its row.
    """

    absolute: float
    relative: float


EXACT = Errors(0.0, 0.0)


def steps_of(probabilities: Tensor, counts: Tensor, levels: int) -> Steps:
    """Whole numbers of probabilities.

    Args:
        probabilities: ``(b, h, q, k)``; what is below 0 becomes 0.
        counts: boolean ``(b, h, q)``: rows that count.
        levels: the largest code, 1 to 255.

    Examples:
        >>> import torch
        >>> steps = steps_of(torch.tensor([[[[0.5, 0.125, 0.0]]]]), torch.ones(1, 1, 1).bool(), 10)
        >>> steps.codes[0, 0, 0].tolist(), steps.exponents.tolist()
        ([10, 4, 0], [[[20]]])
    """
    numbers = probabilities.numpy()
    states = np.where(counts.numpy(), COUNTS, 0) | np.where(np.isfinite(numbers).all(-1), 0, NAN)
    told = (states == COUNTS)[..., None]
    kept = np.where(told, numbers, 0)
    largest = kept.max(-1, initial=0)
    per_octave = 2 * levels
    exponents = np.full(largest.shape, _LAST, np.uint16)
    positive = largest > 0
    places = -np.log2(largest[positive].astype(np.float64)) * per_octave
    exponents[positive] = places.round().clip(0, _LAST)
    part = kept / np.maximum(row_scales(exponents, levels), _TINY)[..., None]
    part = part.clip(0, 1, out=part)
    codes = ((np.sqrt(part) + part) * (levels / 2)).round().astype(np.uint8)
    return Steps(codes, exponents, states.astype(np.uint8), levels)


def row_scales(exponents: NDArray[np.uint16], levels: int) -> NDArray[np.float64]:
    """The largest number of each row, as it is kept."""
    return np.exp2(exponents.astype(np.float64) / -(2 * levels))


def parts_of_codes(levels: int) -> NDArray[np.float64]:
    """What each code, 0 to ``levels``, is of the largest number of its row."""
    root = (np.sqrt(1 + 8 * np.arange(levels + 1) / levels) - 1) / 2
    return root * root


def numbers_of(steps: Steps) -> NDArray[np.float32]:
    """The probabilities ``(b, h, q, k)`` as they are kept; 0 in rows that do not count."""
    kept = parts_of_codes(steps.levels)[steps.codes]
    kept *= row_scales(steps.exponents, steps.levels)[..., None]
    kept[~steps.told()] = 0
    kept[steps.states & NAN != 0] = np.nan
    return kept.astype(np.float32)


def errors_of(steps: Steps, probabilities: Tensor) -> Errors:
    """How far the rows that are told are from the exact ones, at most."""
    told = steps.told()
    if not told.any() or steps.codes.shape[-1] == 0:
        return EXACT
    exact = probabilities.numpy()[told].clip(0)  # weights below 0 are shown as 0
    scales = row_scales(steps.exponents[told], steps.levels)
    kept = parts_of_codes(steps.levels)[steps.codes[told]] * scales[:, None]
    off = np.abs(kept - exact).max(-1)
    largest = exact.max(-1)
    relative = off[largest > 0] / largest[largest > 0]
    return Errors(float(off.max()), float(relative.max(initial=0)))
