"""Running a teacher over a data set and writing its signals, shard by shard."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .._backbone.backbone import Backbone
from .._backbone.batch import SideOfBatch, checked_batch
from .._backbone.depth import Wanted
from .._backbone.signals import Signals
from ..errors import CacheError, OptionError
from .identity import Header
from .index import Index
from .inputs import check_inputs, check_read, keys_of, seen
from .packing import check_repeats, pack
from .shard import Example, encode, name_of
from .sizes import Estimate, check_fits, estimate_of, examples_in
from .store import Store

_WRITER = re.compile(r"[\w-]+")


class Filled(NamedTuple):
    """What one call of ``fill`` did.

    Attributes:
        stored: examples that were written.
        known: examples that were there before.
        bytes: that were written.
        seconds: it took, and those of them in the teacher.
        teacher_seconds: in the teacher's forward.
        estimate: what was expected of the first batch that was new; None: there was none.
    """

    stored: int
    known: int
    bytes: int
    seconds: float
    teacher_seconds: float
    estimate: Estimate | None


def writer_of(given: str | None) -> str:
    """The name that this process writes under: its rank's, unless one was given.

    Raises:
        OptionError: a name that cannot stand in a file name.
    """
    if given is not None and not _WRITER.fullmatch(given):
        raise OptionError(f"writer is letters, digits, _ and -; got {given!r}")
    if given is not None:
        return given
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else int(os.environ.get("RANK", "0"))
    return f"rank-{rank}"


class Writer:
    """Examples on their way to shards.

    Args:
        store: where shards are put.
        writer: the name that they begin with.
        number: of the first shard.
        header: how signals are written.
        shard_bytes: a shard is written when it has so many.
        on_shard: called with the name of each shard that is there.
    """

    def __init__(
        self,
        store: Store,
        writer: str,
        number: int,
        header: Header,
        shard_bytes: int,
        on_shard: Callable[[str], None],
    ) -> None:
        self._store, self._writer, self._number = store, writer, number
        self._limit, self._on_shard = shard_bytes, on_shard
        self._cache = header.checksum
        self._dtypes = {
            part.name: getattr(torch, part.dtype)
            for signal in header.signals
            for part in signal.every_part()
        }
        self._waiting: dict[str, Example] = {}
        self._size = 0
        self.written = 0

    @property
    def waiting(self) -> Mapping[str, Example]:
        """Examples that are not in a shard yet, by their keys."""
        return self._waiting

    def add(self, examples: Sequence[Example]) -> None:
        """Take examples; full shards are written at once."""
        for one in examples:
            self._waiting[one.key] = one
            self._size += sum(array.nbytes for array in one.arrays.values())
            if self._size >= self._limit:
                self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        data, digest = encode(list(self._waiting.values()), self._dtypes, self._cache)
        name = name_of(self._writer, self._number, digest)
        self._store.write(name, data, writer=self._writer)
        self._number += 1
        self.written += len(data)
        self._waiting, self._size = {}, 0
        self._on_shard(name)


class Ran(NamedTuple):
    """One batch that a teacher ran on.

    Attributes:
        keys: of its examples.
        signals: of the teacher.
        view: the batch as the teacher sees it.
        used: the entries that it read.
    """

    keys: list[str]
    signals: Signals
    view: SideOfBatch
    used: set[str]


class Source(NamedTuple):
    """A teacher on its way through a data set.

    Attributes:
        backbone: the teacher.
        key: the batch entries that tell examples apart.
        wanted: which layers of which signals its run keeps.
    """

    backbone: Backbone
    key: tuple[str, ...]
    wanted: Wanted

    def run(self, batch: Mapping[str, Any]) -> Ran:
        """The signals of a batch, without gradient."""
        used: set[str] = set()
        view = SideOfBatch(checked_batch(batch), "teacher")
        with torch.no_grad():
            signals = self.backbone.run(view.noting(used), wanted=self.wanted)[1]
        return Ran(keys_of(view, self.key), signals, view, used)


class Filling:
    """One run over a data set.

    Args:
        store: where shards go.
        index: what is there.
        source: the teacher.
        header_of: makes or finds the header, by the first batch that is new.
        shard_bytes: of a shard.
        writer: the start of the shards' names.
    """

    def __init__(
        self,
        store: Store,
        index: Index,
        source: Source,
        header_of: Callable[[Ran], Header],
        shard_bytes: int,
        writer: str,
    ) -> None:
        self._store, self._index, self._source = store, index, source
        self._header_of, self._shard_bytes, self._name = header_of, shard_bytes, writer
        self._header: Header | None = None
        self._out: Writer | None = None
        self._estimate: Estimate | None = None
        self._teacher = Clock()

    def run(
        self, loader: Iterable[Mapping[str, Any]], header: Header | None, *, progress: bool
    ) -> Filled:
        """Store what is missing; ``header`` is that of a cache that is there."""
        began = time.perf_counter()
        stored = known = 0
        total = examples_in(loader)
        self._header = header
        for batch in shown(loader, progress=progress):
            view = SideOfBatch(checked_batch(batch), "teacher")
            keys = keys_of(view, self._source.key)
            inputs = {} if self._header is None else seen(view, self._header, len(keys))
            new = self._new(keys)
            if new:
                examples, inputs = self._ran(batch, new, total)
                stored += len(new)
            self._check_known(keys, new, inputs)
            if new:
                assert self._out is not None
                self._out.add(examples)
            known += len(keys) - len(new)
        if self._out is not None:
            self._out.flush()
        if stored + known == 0:
            raise CacheError("the loader brought no example")
        seconds = time.perf_counter() - began
        written = 0 if self._out is None else self._out.written
        return Filled(stored, known, written, seconds, self._teacher.seconds, self._estimate)

    def _ran(
        self, batch: Mapping[str, Any], new: Sequence[int], total: int | None
    ) -> tuple[list[Example], dict[str, list[int]]]:
        """The new examples of a batch, and what the teacher saw of all of them."""
        with self._teacher.running():
            ran = self._source.run(batch)
        if self._out is None:
            self._header = self._header_of(ran)
        assert self._header is not None
        check_read(ran.used, self._header.inputs)
        inputs = seen(ran.view, self._header, len(ran.keys))
        examples = pack(ran.signals, self._header.signals, ran.keys, new, inputs, ran.view)
        if self._out is None:
            again = self._source.run(batch).signals
            specs = self._header.signals
            check_repeats(specs, examples, pack(again, specs, ran.keys, new, inputs, ran.view))
            self._estimate = estimate_of(self._header, examples, total, self._store.free_bytes())
            check_fits(self._estimate, self._store.place, there=len(self._index))
            self._out = Writer(
                self._store, self._name, self._index.next_number(self._name), self._header,
                self._shard_bytes, self._index.take,
            )  # fmt: skip
        return examples, inputs

    def _new(self, keys: Sequence[str]) -> list[int]:
        """The examples that are not stored; of several with one key, the first."""
        waiting = {} if self._out is None else self._out.waiting
        first = {keys[i]: i for i in reversed(range(len(keys)))}
        known = (self._index, waiting)
        return sorted(i for key, i in first.items() if not any(key in one for one in known))

    def _check_known(
        self, keys: Sequence[str], new: Sequence[int], inputs: Mapping[str, Sequence[int]]
    ) -> None:
        """Refuse examples that are other ones than those of the same key before.

        Raises:
            CacheError: the key does not tell examples apart, or they are not what they were.
        """
        before = {keys[i]: {name: numbers[i] for name, numbers in inputs.items()} for i in new}
        others = [i for i in range(len(keys)) if i not in set(new)]
        in_shards = [key for key in {keys[i] for i in others} if key in self._index]
        before |= {one.key: dict(one.inputs) for one in self._index.examples(in_shards, [])}
        if self._out is not None:
            before |= {key: dict(one.inputs) for key, one in self._out.waiting.items()}
        there = [i for i in others if keys[i] in before]
        check_inputs(
            [keys[i] for i in there],
            {name: [before[keys[i]][name] for i in there] for name in inputs},
            {name: [numbers[i] for i in there] for name, numbers in inputs.items()},
            filling=True,
        )


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and afterwards each of its modules as it was."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def shown(loader: Iterable[Any], *, progress: bool) -> Iterable[Any]:
    """The batches, with a bar of tqdm where that is installed and this is the first rank."""
    if not progress or writer_of(None) != "rank-0":
        return loader
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return loader
    bar: Iterable[Any] = tqdm(loader, desc="teacher", unit="batch")
    return bar


class Clock:
    """Seconds, all together."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
