"""What a code probably is, from codes before it: neighbours in its map, and a map that is like it.

Attention is smooth over an image, similar from word to word, and the student's is like the
teacher's: a weighted sum of such neighbours, fitted to the maps themselves, says much of a code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .steps import Steps

Codes: TypeAlias = NDArray[np.uint8]
Offset: TypeAlias = "tuple[int, int]"
"""Rows and keys before the predicted one."""

TOP = 1023  # of a prediction, in whole numbers that Python and JavaScript compute alike
_SHIFT = 4
_FITTED = 50_000  # codes that weights are fitted to


class Rows(NamedTuple):
    """The rows of a layer that are told, one below another.

    Attributes:
        codes: ``(n, k)``.
        reference: ``(n, k)``: the same rows of another map; None: there is none.
        lanes: ``(n,)``: which map, example by example and head by head, a row is of.
        maps: how many maps there are.
    """

    codes: Codes
    reference: Codes | None
    lanes: NDArray[np.int64]
    maps: int

    def chosen(self, which: NDArray[np.bool_]) -> Rows:
        """Those of ``which``, boolean ``(n,)``."""
        reference = None if self.reference is None else self.reference[which]
        return Rows(self.codes[which], reference, self.lanes[which], self.maps)


class Neighbours(NamedTuple):
    """Which codes predict one, by how many rows and keys they lie before it.

    Attributes:
        own: of the same map.
        other: of the reference.
    """

    own: Sequence[Offset]
    other: Sequence[Offset]


def rows_of(steps: Steps, reference: Steps | None) -> Rows:
    """The rows that are told, and those of the reference beside them."""
    told = steps.told()
    b, h, q = told.shape
    lanes = np.broadcast_to(np.arange(b * h).reshape(b, h, 1), (b, h, q))[told]
    other = None if reference is None else reference.codes[told]
    return Rows(steps.codes[told], other, lanes, b * h)


def neighbours(strides: Offset, *, referred: bool) -> Neighbours:
    """The codes that predict one.

    Args:
        strides: how many tokens lie from one row of patches to the next, among rows and among
            keys; 2 where tokens are no grid.
        referred: whether there is a reference.
    """
    rows, keys = strides
    own = [(0, 1), (0, keys), (1, 0), (rows, 0)]
    return Neighbours(own, [(0, 0), (0, 1), (0, keys), (1, 0)] if referred else [])


def fitted(samples: Sequence[Rows], which: Neighbours, levels: int) -> list[int]:
    """A weight for each neighbour, and a constant, which predict best on average."""
    every = max(1, sum(one.codes.size for one in samples) // _FITTED)
    parts = [_thinned(one, every, number) for number, one in enumerate(samples)]
    inputs, wanted = (
        np.concatenate(one) for one in zip(*(_columns(x, which) for x in parts), strict=True)
    )
    # A little is added to the diagonal: neighbours that are always 0 get weight 0.
    square = inputs.T @ inputs + 1e-3 * np.eye(inputs.shape[1])
    solved = np.linalg.solve(square, inputs.T @ wanted) * (TOP / levels * 2**_SHIFT)
    return solved.round().astype(np.int64).tolist()  # type: ignore[no-any-return]


def predicted(rows: Rows, which: Neighbours, weights: Sequence[int]) -> NDArray[np.int32]:
    """``(n, k)``, 0 to ``TOP``: what the neighbours of each code say of it."""
    total = np.full(rows.codes.shape, weights[-1], np.int32)
    for weight, one in zip(weights, _shifts(rows, which), strict=False):
        if weight:
            total += np.int32(weight) * one
    total >>= _SHIFT
    return total.clip(0, TOP, out=total)


def _thinned(rows: Rows, every: int, first: int) -> Rows:
    """One of so many maps, of each layer others; all of them where that leaves nothing."""
    chosen = (rows.lanes * 7 + first) % every == 0
    if not chosen.any():
        return rows
    return rows.chosen(chosen)


def _columns(rows: Rows, which: Neighbours) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Neighbours and a constant of each code, and the codes."""
    found = np.ones((rows.codes.size, 1 + len(which.own) + len(which.other)))
    for i, one in enumerate(_shifts(rows, which)):
        found[:, i] = one.ravel()
    return found, rows.codes.ravel().astype(np.float64)


def _shifts(rows: Rows, which: Neighbours) -> Iterator[NDArray[np.int32]]:
    for offset in which.own:
        yield _shifted(rows.codes, rows.lanes, offset)
    for offset in which.other:
        yield _shifted(rows.reference, rows.lanes, offset)  # type: ignore[arg-type]


def _shifted(codes: Codes, lanes: NDArray[np.int64], offset: Offset) -> NDArray[np.int32]:
    """The code so many rows and keys before each; 0 before the first of its map."""
    up, left = offset
    n, k = codes.shape
    found = np.zeros((n, k), np.int32)
    found[up:, left:] = codes[: max(0, n - up), : max(0, k - left)]
    if up:
        found[:up] = 0
        found[up:][lanes[up:] != lanes[: max(0, n - up)]] = 0
    return found
