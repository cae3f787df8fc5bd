"""Layers of a signal by index or by relative depth, before it is known how many it has."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias


class Span(NamedTuple):
    """The layers between two relative depths, both ends included; equal ends are one layer.

    It is a type of its own since the index 1 and the depth 1.0 are equal, and one entry of a set.

    Attributes:
        start: relative depth in [0, 1]: 0.0 is the first layer, 1.0 the last.
        stop: the same, not below ``start``.
    """

    start: float
    stop: float

    def of(self, depth: int) -> range:
        """The layers of so many; at least one, where there is any.

        Examples:
            >>> Span(0.3, 0.7).of(12), Span(0.3, 0.7).of(32)
            (range(3, 9), range(9, 23))
        """
        if depth == 0:
            return range(0)
        return range(nearest_layer(self.start, depth), nearest_layer(self.stop, depth) + 1)


LayerIndices: TypeAlias = "frozenset[int | Span] | Literal['all']"
"""Layers as indices from either end and as relative depths, or all of them."""

Wanted: TypeAlias = "Mapping[str, LayerIndices]"
"""Signal -> the layers of it that are compared."""


def nearest_layer(fraction: float, depth: int) -> int:
    """The layer at a relative depth: ``fraction * (depth - 1)``, rounded, halves up.

    The fraction counts as the decimal number that was written, so that no binary rounding decides
    on which side of a half it lies.

    Examples:
        >>> [nearest_layer(0.29, depth) for depth in (1, 2, 51)], 0.29 * 50
        ([0, 0, 15], 14.499999999999998)
    """
    # the floor of x + 1/2
    return int((Fraction(repr(float(fraction))) * 2 * (depth - 1) + 1) // 2)


def positions(layers: LayerIndices, depth: int) -> tuple[int, ...]:
    """The layers as positions from the bottom of so many; those that are not there are left out.

    Examples:
        >>> positions(frozenset({-1, 1, 7, Span(0.5, 0.5)}), 5)
        (1, 2, 4)
    """
    if isinstance(layers, str):
        return tuple(range(depth))
    found: set[int] = set()
    for one in layers:
        if isinstance(one, Span):
            found.update(one.of(depth))
        elif -depth <= one < depth:
            found.add(one % depth)
    return tuple(sorted(found))
