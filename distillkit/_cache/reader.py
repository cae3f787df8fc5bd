"""The signals of a cache for the batches that ask, if they are what the teacher saw."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from .._backbone.batch import SideOfBatch
from .._backbone.signals import Signals
from ..errors import CacheError, unknown_name
from .identity import Header
from .index import Index
from .inputs import check_inputs, comparable, fingerprints, keys_of
from .shard import Example
from .spec import SignalSpec
from .unpacking import unpack


class Reader:
    """What is read of one cache.

    Args:
        place: the cache, for messages.
        index: its examples.
        header: how they are written.
        inputs: the batch entries that are compared with what the teacher saw; None: all.
    """

    def __init__(
        self, place: str, index: Index, header: Header, inputs: Sequence[str] | None
    ) -> None:
        self._place, self._index, self._header, self._inputs = place, index, header, inputs

    def signals(
        self, batch: Mapping[str, Any] | Sequence[Any] | Tensor, names: Sequence[str]
    ) -> Signals:
        """The signals of a batch's examples, or of keys alone; no names: all signals."""
        header = self._header
        if not isinstance(batch, Mapping):
            if len(header.key) > 1:
                raise CacheError(
                    f"examples are told apart by {header.key} together: pass a mapping of them"
                )
            view: Mapping[str, Any] = {header.key[0]: batch}
            return self._read(keys_of(view, header.key), None, self._specs(names))
        view = batch if isinstance(batch, SideOfBatch) else SideOfBatch(batch, "teacher")
        keys = keys_of(view, header.key)
        return self._read(keys, view, self._specs(names))

    def stream(self, names: Sequence[str]) -> Iterator[tuple[list[Any], Signals]]:
        """Keys and signals of all examples, shard after shard."""
        specs = self._specs(names)
        for keys in self._index.in_shards():
            yield [json.loads(key) for key in keys], self._read(keys, None, specs)

    def _specs(self, names: Sequence[str]) -> list[SignalSpec]:
        known = {one.name: one for one in self._header.signals}
        for name in names:
            if name not in known:
                raise unknown_name("signal of this cache", name, known)
        return [known[name] for name in names] if names else list(known.values())

    def _read(
        self, keys: Sequence[str], view: SideOfBatch | None, specs: Sequence[SignalSpec]
    ) -> Signals:
        parts = [part for spec in specs for part in spec.every_part()]
        examples = self._index.examples(keys, parts)
        if view is not None:
            self._compare(view, keys, examples)
        return unpack(examples, specs, view)

    def _compare(self, view: SideOfBatch, keys: Sequence[str], examples: Sequence[Example]) -> None:
        """Refuse inputs that are not what the teacher saw."""
        if self._inputs == ():
            return
        compared = self._header.compared
        wanted = compared if self._inputs is None else self._inputs
        unknown = [name for name in wanted if name not in compared]
        if unknown:
            raise CacheError(
                f"the fingerprints of {', '.join(map(repr, unknown))} are not in {self._place}, "
                f"which has those of {', '.join(map(repr, compared)) or 'no entry'}"
            )
        there = comparable(view, wanted, len(keys))
        if not there:
            raise CacheError(
                "nothing shows that these examples are what the teacher saw: the batch has none of "
                f"{', '.join(map(repr, compared or self._header.inputs))} with an entry for each "
                "example. Keep one of them in the batch, or vouch for it: "
                "SignalCache(..., inputs=())"
            )
        stored = {name: [one.inputs[name] for one in examples] for name in there}
        check_inputs(keys, stored, fingerprints(view, there, self._header.inputs))
