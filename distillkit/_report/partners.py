"""Which other example's teacher signals stand in for an example's own: one that is as long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .._attention import Attention
from .._backbone.head import PARAMETERS
from .._backbone.signals import Signals
from ..errors import OptionError


class Side(NamedTuple):
    """A model's signals, and the names of those that terms compare."""

    signals: Signals
    names: Sequence[str]


class Partners(NamedTuple):
    """Examples in their order, and the partner of each; empty where nobody has one.

    Attributes:
        own: the examples that have a partner.
        other: their partners.
        are_all: whether every example has one.
    """

    own: list[int]
    other: list[int]
    are_all: bool


def partners(sides: Sequence[Side]) -> Partners:
    """Each example's partner: the one before it among those whose padding is the same.

    Args:
        sides: of all models.

    Raises:
        OptionError: signals of unequally many examples, such as logits of all pairs of a batch and
            attention of some.
    """
    counts = _counts(sides)
    if len(counts) > 1:
        raise OptionError(
            "readings compare examples with each other, and the signals of the watched batch have "
            f"unequally many: {', '.join(map(str, sorted(counts)))}. Watch a batch where each "
            "example is in all of them, or give the watch readings=False"
        )
    count = next(iter(counts), 0)
    alike: dict[bytes, list[int]] = {}
    for i, key in enumerate(_paddings(sides, count)):
        alike.setdefault(key, []).append(i)
    found: dict[int, int] = {}
    for group in alike.values():
        if len(group) > 1:
            found.update(zip(group, [*group[-1:], *group[:-1]], strict=True))
    own = sorted(found)
    return Partners(own, [found[i] for i in own], len(own) == count)


def _counts(sides: Sequence[Side]) -> set[int]:
    """How many examples the signals have; one number where they agree."""
    found: set[int] = set()
    for signals, names in sides:
        for name in names:
            if name in PARAMETERS or name not in signals:
                continue
            value = signals[name]
            layers = value if isinstance(value, Sequence) else [value]
            found.update(
                one.shape[0] for one in layers if isinstance(one, (Attention, Tensor)) and one.shape
            )
    return found


def _paddings(sides: Sequence[Side], count: int) -> list[bytes]:
    """What is padding of each example, as bytes that are equal where it is the same."""
    found = [b""] * count
    for signals, names in sides:
        for name in names:
            if name not in signals:
                continue
            for axis in signals.axes(name):
                valid = None if axis is None else axis.valid
                if valid is None:
                    continue
                rows = valid.cpu().expand(count, -1)
                found = [key + row.numpy().tobytes() for key, row in zip(found, rows, strict=True)]
    return found
