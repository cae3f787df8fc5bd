"""Which example is in which shard, of all the shards that are there."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from ..errors import CacheError
from .shard import Example, Shard, parsed_name
from .spec import PartSpec
from .store import Store


class Index:
    """The examples of a store.

    Headers stay in memory, about a hundred bytes for each example and array; of the shards' numbers
    nothing does.

    Args:
        store: where shards are.
        cache: the checksum of the cache's header; None: there is none yet, and no shard.
    """

    def __init__(self, store: Store, cache: str | None = None) -> None:
        self._store, self._cache = store, cache
        self._read = False
        self._shards: dict[str, Shard] = {}
        self._rows: dict[str, tuple[str, int]] = {}
        self._opened: OrderedDict[str, None] = OrderedDict()
        self._may_open = _may_open()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        self.read()
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        self.read()
        return key in self._rows

    @property
    def shards(self) -> dict[str, Shard]:
        """Every shard, by its name."""
        self.read()
        return dict(self._shards)

    def in_shards(self) -> Iterator[list[str]]:
        """The keys of all examples, shard by shard, as files are read fastest; each key once."""
        self.read()
        rows = self._rows
        for name, shard in list(self._shards.items()):
            own = [key for key in shard.contents.keys if rows[key][0] == name]
            if own:
                yield own

    def belongs_to(self, cache: str) -> None:
        """Now there is a header, with this checksum."""
        if self._cache != cache:
            self._cache, self._read = cache, False

    def read(self) -> None:
        """Take in all shards, unless that was done.

        Raises:
            CacheError: a shard whose header is damaged; as often as it is asked.
        """
        if not self._read:
            self.refresh()

    def refresh(self) -> None:
        """Take in the shards that have come, and forget those that have gone.

        Raises:
            CacheError: a shard whose header is damaged.
        """
        if self._cache is None:
            return
        names = [name for name in self._store.names() if parsed_name(name) is not None]
        with self._lock:
            self._read = False
            if set(self._shards) - set(names):
                self._keep(frozenset(names))
            for name in names:
                if name not in self._shards:
                    self._take(name)
            self._read = True

    def _keep(self, names: Collection[str]) -> None:
        """Forget all other shards; what was in them may be in one of these, too."""
        shards = {name: shard for name, shard in self._shards.items() if name in names}
        rows: dict[str, tuple[str, int]] = {}
        for name, shard in shards.items():
            for row, key in enumerate(shard.contents.keys):
                rows.setdefault(key, (name, row))
        # other threads read the old ones until the new ones are whole
        self._shards, self._rows = shards, rows
        for name in [name for name in self._opened if name not in shards]:
            del self._opened[name]

    def take(self, name: str) -> None:
        """Take in one shard that has been written."""
        with self._lock:
            self._take(name)

    def _take(self, name: str) -> None:
        assert self._cache is not None
        shard = self._shards[name] = Shard(self._store.file(name), self._cache)
        for row, key in enumerate(shard.contents.keys):
            self._rows.setdefault(key, (name, row))

    def examples(self, keys: Sequence[str], parts: Sequence[PartSpec]) -> list[Example]:
        """Examples with some of their arrays, in the order of the keys.

        Raises:
            CacheError: examples that are not there, or damaged.
        """
        self.read()
        if any(key not in self._rows for key in keys):
            self.refresh()  # another process may have stored them since
        missing = [key for key in keys if key not in self._rows]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise CacheError(
                f"{len(missing)} of {len(keys)} examples are not in {self._store.place}, which "
                f"holds {len(self)}: {shown}. fill() stores what is missing"
            )
        found = []
        for key in keys:
            name, row = self._rows[key]
            one = self._shard(name).example(row, parts)
            if one.key != key:
                raise CacheError(f"shard {name} has {one.key} in the place of {key}")
            found.append(one)
        return found

    def _shard(self, name: str) -> Shard:
        """A shard that is about to be read; of too many open ones, the oldest is closed."""
        with self._lock:
            self._opened[name] = None
            self._opened.move_to_end(name)
            if len(self._opened) > self._may_open:
                self._shards[self._opened.popitem(last=False)[0]].close()
            return self._shards[name]

    def next_number(self, writer: str) -> int:
        """The number of a writer's next shard."""
        known = [parsed_name(name) for name in self._store.names()]
        return 1 + max([-1, *(one[1] for one in known if one is not None and one[0] == writer)])

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self._store, self._cache)


def _may_open() -> int:
    """How many shards are open at a time: each takes one of the handles that a process has."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 64
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 256 if allowed == resource.RLIM_INFINITY else max(1, min(256, allowed // 4))
