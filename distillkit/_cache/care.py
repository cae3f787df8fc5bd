"""Looking after the files of a cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..errors import CacheError
from .identity import Header
from .shard import Shard, parsed_name
from .store import Store


class Damage(NamedTuple):
    """A shard that is damaged.

    Attributes:
        shard: the file.
        problem: what is wrong with it.
        examples: how many are lost with it; None: its header does not say.
    """

    shard: str
    problem: str
    examples: int | None


def damages(store: Store, header: Header) -> Iterator[Damage]:
    """Every damaged shard, found by reading every byte."""
    parts = [part for signal in header.signals for part in signal.every_part()]
    for name in store.names():
        if parsed_name(name) is None:
            continue
        try:
            shard = Shard(store.path(name), header.checksum)
        except CacheError as error:
            yield Damage(name, str(error), None)
            continue
        try:
            for row in range(len(shard)):
                shard.example(row, parts)
        except CacheError as error:
            yield Damage(name, str(error), len(shard))
        finally:
            shard.close()
