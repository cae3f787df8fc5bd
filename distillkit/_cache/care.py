"""Looking after the files of a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..errors import CacheError
from .files import File
from .identity import Header
from .shard import Shard, parsed_name
from .spec import PartSpec
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
    """Every damaged shard, found by reading every byte, of a store elsewhere those that it has.

    Raises:
        CacheError: a shard that cannot be fetched: it need not be damaged.
    """
    parts = [part for signal in header.signals for part in signal.every_part()]
    for name in store.names():
        if parsed_name(name) is None:
            continue
        with store.as_stored(name) as file:
            found = _damage(file, header.checksum, parts)
        if found is not None:
            yield found


def _damage(file: File, cache: str, parts: Sequence[PartSpec]) -> Damage | None:
    try:
        shard = Shard(file, cache)
    except CacheError as error:
        return Damage(file.name, str(error), None)
    try:
        for row in range(len(shard)):
            shard.example(row, parts)
    except CacheError as error:
        return Damage(file.name, str(error), len(shard))
    finally:
        shard.close()
    return None
