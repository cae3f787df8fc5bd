"""Running a teacher over a data set and writing its signals, shard by shard."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import torch
from torch import nn

from .._backbone.backbone import Backbone
from .._backbone.batch import SideOfBatch, checked_batch
from .._backbone.signals import Signals
from ..errors import CacheError, OptionError
from .identity import Header
from .inputs import fingerprints
from .packing import pack
from .shard import Example, encode, name_of
from .spec import SignalSpec
from .store import Store

_WRITER = re.compile(r"[\w-]+")


class SizeOfSignal(NamedTuple):
    """What one signal takes.

    Attributes:
        name: of the signal.
        form: how an attention is written: as queries and keys, or as a map.
        coding: how its numbers are written.
        bytes: the mean of an example.
        error: the mean error of the coding: KL divergence in nats for logits and attention, of
            other tensors that of the root mean square.
    """

    name: str
    form: str
    coding: str
    bytes: float
    error: float


class Estimate(NamedTuple):
    """What a cache will take, from its first batch.

    Attributes:
        signals: one for each signal.
        bytes_per_example: of all signals, with what is kept beside them.
        examples: how many there will be; None: the loader does not say.
        free_bytes: what fits; None: the place does not say.
    """

    signals: tuple[SizeOfSignal, ...]
    bytes_per_example: float
    examples: int | None
    free_bytes: int | None

    @property
    def bytes(self) -> float | None:
        """Of all examples."""
        return None if self.examples is None else self.examples * self.bytes_per_example

    def __str__(self) -> str:
        lines = [
            f"{one.name}: {readable(one.bytes)} an example, {one.form}, {one.coding}"
            + (f", mean error {one.error:.2g}" if one.error else "")
            for one in self.signals
        ]
        total = f"{readable(self.bytes_per_example)} an example"
        if self.bytes is not None:
            total += f", {readable(self.bytes)} for {self.examples:,} examples"
        if self.free_bytes is not None:
            total += f"; {readable(self.free_bytes)} are free"
        return "\n".join([*lines, total])


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


def readable(count: float) -> str:
    """Bytes for people.

    Examples:
        >>> readable(27_800_000_000)
        '27.8 GB'
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


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
        self._dtypes = {
            part.name: getattr(torch, part.dtype)
            for signal in header.signals
            for part in signal.every_part()
        }
        self._waiting: list[Example] = []
        self._size = 0
        self.written = 0

    def add(self, examples: Sequence[Example]) -> None:
        """Take examples; full shards are written at once."""
        for one in examples:
            self._waiting.append(one)
            self._size += sum(array.nbytes for array in one.arrays.values())
            if self._size >= self._limit:
                self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        data, digest = encode(self._waiting, self._dtypes)
        name = name_of(self._writer, self._number, digest)
        self._store.write(name, data, writer=self._writer)
        self._number += 1
        self.written += len(data)
        self._waiting, self._size = [], 0
        self._on_shard(name)


class Source(NamedTuple):
    """A teacher on its way through a data set.

    Attributes:
        backbone: the teacher.
        key: the batch entries that tell examples apart.
        wanted: which layers of which signals its run keeps.
    """

    backbone: Backbone
    key: tuple[str, ...]
    wanted: Any

    def run(self, batch: Mapping[str, Any]) -> tuple[Signals, SideOfBatch, set[str]]:
        """The signals of a batch, the teacher's view of it, and the entries that it read."""
        used: set[str] = set()
        view = SideOfBatch(checked_batch(batch), "teacher", used)
        with torch.no_grad():
            signals = self.backbone.run(view, wanted=self.wanted)[1]
        return signals, SideOfBatch(batch, "teacher"), used


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


def examples_in(loader: Iterable[Any]) -> int | None:
    """How many examples a loader will bring; None: it does not say."""
    sampler = getattr(loader, "sampler", None)
    for one in (sampler, getattr(loader, "dataset", None)):
        if isinstance(one, Sized):
            with contextlib.suppress(TypeError):
                return len(one)
    return None


def estimate_of(
    header: Header, examples: Sequence[Example], total: int | None, free: int | None
) -> Estimate:
    """What a cache takes, from some of its examples."""
    count = max(1, len(examples))
    sizes = []
    for signal in header.signals:
        parts = {part.name for part in signal.every_part()}
        size = sum(x.nbytes for one in examples for name, x in one.arrays.items() if name in parts)
        sizes.append(SizeOfSignal(signal.name, *described(signal), size / count, error_of(signal)))
    dtypes = {
        part.name: getattr(torch, part.dtype)
        for signal in header.signals
        for part in signal.every_part()
    }
    whole = len(encode(examples, dtypes)[0]) if examples else 0
    return Estimate(tuple(sizes), whole / count, total, free)


def described(signal: SignalSpec) -> tuple[str, str]:
    """How a signal is written: its form and its coding."""
    codings = {piece.coding for layer in signal.pieces for piece in layer.values()}
    return signal.form, "+".join(sorted(codings))


def error_of(signal: SignalSpec) -> float:
    """The mean error that was measured when the cache was begun."""
    return max(piece.error for layer in signal.pieces for piece in layer.values())


def check_fits(estimate: Estimate, place: str) -> None:
    """Refuse to begin what will not fit.

    Raises:
        CacheError: more bytes than are free.
    """
    if estimate.bytes is None or estimate.free_bytes is None:
        return
    if estimate.bytes > estimate.free_bytes:
        raise CacheError(
            f"the signals do not fit into {place}:\n{estimate}\n"
            "Allow an error, SignalCache(..., error=1e-3), choose codings, or another place"
        )


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


def packed(
    signals: Signals,
    header: Header,
    keys: Sequence[str],
    new: Sequence[int],
    view: SideOfBatch,
) -> list[Example]:
    """The new examples of a batch."""
    inputs = fingerprints(view, header.compared)
    return pack(signals, header.signals, keys, new, inputs, view)
