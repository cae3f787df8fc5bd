"""Looking after the files of a cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..errors import CacheError
from .files import File
from .filling import Writer
from .identity import HEADER, Header
from .index import Index
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


class Survey(NamedTuple):
    """What the beginnings of the files say.

    Attributes:
        examples: how many there are.
        files: how many.
        bytes: array -> of all examples.
        damaged: the files whose beginning is damaged; they are not counted.
    """

    examples: int
    files: int
    bytes: dict[str, int]
    damaged: list[Damage]


def survey(store: Store, header: Header) -> Survey:
    """What is there, of the files that can be read."""
    keys: set[str] = set()
    sizes: Counter[str] = Counter()
    damaged, files = [], 0
    for name in _shards(store):
        try:
            shard = Shard(store.file(name), header.checksum)
        except CacheError as error:
            damaged.append(Damage(name, str(error), None))
            continue
        files += 1
        keys.update(shard.contents.keys)
        sizes.update({part: shard.bytes_of(part) for part in shard.parts})
    return Survey(len(keys), files, dict(sizes), damaged)


def _shards(store: Store) -> list[str]:
    return [name for name in store.names() if parsed_name(name) is not None]


def damages(store: Store, header: Header) -> Iterator[Damage]:
    """Every damaged shard, found by reading every byte, of a store elsewhere those that it has.

    Raises:
        CacheError: a shard that cannot be fetched: it need not be damaged.
    """
    parts = [part for signal in header.signals for part in signal.every_part()]
    for name in _shards(store):
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


def export(index: Index, header: Header, to: Store, shard_bytes: int) -> None:
    """Copy every example into an empty store, checked; the header comes last.

    Raises:
        CacheError: something is there, or an example is damaged.
    """
    there = to.names()
    if there and HEADER not in there and all(map(parsed_name, there)):
        raise CacheError(f"{to.place} has a part of an export that was interrupted: remove it")
    if there:
        raise CacheError(f"{to.place} is not empty: export into a new folder")
    parts = [part for signal in header.signals for part in signal.every_part()]
    with to.writing("export"):
        out = Writer(to, "export", 0, header, shard_bytes, lambda _: None)
        for keys in index.in_shards():
            out.add(index.examples(keys, parts))
        out.flush()
        to.write(HEADER, header.to_bytes(), writer="export")
