"""What a cache takes: for each signal, and before anything is written for all examples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence, Sized
from typing import Any, NamedTuple

import torch

from ..errors import CacheError
from .identity import Header
from .shard import Example, encode
from .spec import SignalSpec


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
    whole = len(encode(examples, dtypes, header.checksum)[0]) if examples else 0
    return Estimate(tuple(sizes), whole / count, total, free)


def described(signal: SignalSpec) -> tuple[str, str]:
    """How a signal is written: its form and its coding."""
    codings = {piece.coding for layer in signal.pieces for piece in layer.values()}
    return signal.form, "+".join(sorted(codings))


def error_of(signal: SignalSpec) -> float:
    """The mean error that was measured when the cache was begun."""
    return max(piece.error for layer in signal.pieces for piece in layer.values())


def check_fits(estimate: Estimate, place: str, *, there: int) -> None:
    """Refuse to begin what will not fit beside the examples that are there.

    Raises:
        CacheError: more bytes than are free.
    """
    if estimate.examples is None or estimate.free_bytes is None:
        return
    if (estimate.examples - there) * estimate.bytes_per_example > estimate.free_bytes:
        raise CacheError(
            f"the signals do not fit into {place}:\n{estimate}\n"
            "Allow an error, SignalCache(..., error=1e-3), choose codings, or another place"
        )
