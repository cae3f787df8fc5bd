"""A teacher's signals on disk, by the examples' own names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._backbone.backbone import Backbone
from .._backbone.batch import SideOfBatch
from .._backbone.depth import Wanted
from .._backbone.signals import Signals
from .._version import installed_version
from ..errors import CacheError, CacheWarning, OptionError
from .agreement import AnyRecipe, check_needs, check_teacher, needs_of_recipes
from .beginning import Wishes, check_wishes, create_header, first_estimate, new_header, source_of
from .care import Damage, damages, export
from .choices import Codings
from .filling import Filled, Filling, Ran, Source, in_eval_mode, writer_of
from .identity import HEADER, Header, preprocessing_name, weights_checksum
from .index import Index
from .inputs import key_of
from .joining import Joining
from .reader import Reader
from .sizes import Estimate
from .store import Store

SHARD_BYTES = 1 << 26


class SignalCache:
    """A teacher's signals, computed once and kept on disk: the teacher need not run again.

    It stores what a recipe compares and no more, without padding, and gives it back for the
    examples of any batch, in any order, to any number of processes. As the teacher of a distiller
    it stands in for the model::

        cache = dk.SignalCache("signals", "dide")
        cache.fill(dk.Backbone(teacher), loader, key="id")
        distiller = dk.Distiller(student, cache, "dide")

    Every number has a checksum that is compared whenever it is read. What the teacher saw of each
    example has a fingerprint, which is compared with the batch that asks: other preprocessing, and
    augmentation at random, are errors. A process that is killed leaves what it had written before.

    Args:
        place: a folder, or a URL that fsspec knows.
        recipe: what signals are stored for: a recipe, its name or path, an :class:`Objective`, or a
            list of them. None: as the cache that is there says.
        error: how far what is read may be from what the teacher computed, in the mean of a batch:
            KL divergence in nats for logits and attention, the root mean square as a part of the
            whole for other tensors. 0, which is what a new cache has, stores every number as it is;
            with more, the smallest coding that keeps to it is chosen on the first batch and watched
            on every other.
        codings: signal -> coding, where you choose: ``"exact"``, ``"float16"``, ``"bfloat16"``,
            ``"int8"``; of logits also ``"top_k:32"``; of an attention as a map ``"map"`` (every
            number as it is), ``"map:float16"`` and ``"uint8"``.
        preprocessing: a name, a processor or plain data; a cache that was filled with other
            preprocessing is refused.
        inputs: the batch entries whose fingerprints are compared when signals are read; by default
            all that the teacher saw and the batch has. ``()``: none, at your own risk.
        local: of a place elsewhere, the folder for copies of the files that are read, which any
            processes may share; by default a temporary one, which goes with this object.
        storage_options: of the file system, as fsspec takes them.

    Raises:
        CacheError: a cache for another recipe or preprocessing, with another error or codings, or
            a damaged one.
    """

    def __init__(
        self,
        place: str | Path,
        recipe: AnyRecipe | Sequence[AnyRecipe] | None = None,
        *,
        error: float | None = None,
        codings: Codings | None = None,
        preprocessing: Any = None,
        inputs: Iterable[str] | None = None,
        local: str | Path | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if error is not None and not error >= 0:
            raise OptionError(f"error is a number >= 0; got {error!r}")
        self._store = Store(place, local, dict(storage_options or {}))
        needs = None if recipe is None else needs_of_recipes(recipe)
        name = preprocessing_name(preprocessing)
        self._wishes = Wishes(needs, error, dict(codings or {}), name)
        self._inputs = None if inputs is None else tuple(inputs)
        self._index = Index(self._store)
        self._header: Header | None = None
        if HEADER in self._store.names():
            self._open()

    def _open(self) -> Header:
        self._header = header = Header.from_bytes(self._store.read(HEADER), self._store.place)
        if header.version != installed_version():
            warnings.warn(
                f"{self._store.place} was filled by distillkit {header.version}, and this is "
                f"{installed_version()}: an adapter may read its model in another way since",
                CacheWarning,
                stacklevel=4,
            )
        check_wishes(self._store.place, header, self._wishes)
        self._index.belongs_to(header.checksum)
        return header

    @property
    def place(self) -> str:
        """The folder or URL."""
        return self._store.place

    @property
    def header(self) -> Header:
        """Whose signals it holds, and how they are written.

        Raises:
            CacheError: nothing has been stored yet.
        """
        if self._header is None and HEADER in self._store.names():
            return self._open()
        if self._header is None:
            raise CacheError(
                f"there is no signal cache in {self._store.place} yet: fill it, "
                "cache.fill(dk.Backbone(teacher), loader)"
            )
        return self._header

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: object) -> bool:
        parts = len(self._header.key) if self._header is not None else 1
        if parts > 1 and (not isinstance(key, (tuple, list)) or len(key) != parts):
            raise CacheError(
                f"examples are told apart by {self.header.key} together: ask for a tuple of "
                f"{parts}; got {key!r}"
            )
        return key_of(key) in self._index

    def missing(self, keys: Iterable[Any]) -> list[Any]:
        """Those of the keys whose examples are not stored, in their order."""
        return [key for key in keys if key not in self]

    def fill(
        self,
        backbone: Backbone | nn.Module,
        loader: Iterable[Mapping[str, Any]],
        *,
        key: str | Sequence[str] = "id",
        weights: str | None = None,
        writer: str | None = None,
        shard_bytes: int = SHARD_BYTES,
        progress: bool = True,
    ) -> Filled:
        """Run the teacher on every example that is not there yet, and store its signals.

        Called again it goes on: what is there is not computed again. Processes with ranks
        (torchrun) fill one cache side by side, each with its own share of the examples and files
        of its own. The model runs in eval mode without gradient and is given back as it was.

        Args:
            backbone: the teacher, with its adapter.
            loader: batches, each with an entry that tells its examples apart.
            key: that entry, or several that do so together.
            weights: the teacher's name and revision, in place of the checksum of its weights: where
                they are sharded or offloaded.
            writer: the start of this process's file names; its rank's by default.
            shard_bytes: a file is written when it has so many; what a process that is killed loses
                at most.
            progress: show a bar, where tqdm is installed.

        Raises:
            CacheError: the cache is of another teacher, adapter, preprocessing or version; there is
                no room; another process writes under this name; examples that were stored before
                are not what they were.
        """
        if shard_bytes < 1:
            raise OptionError(f"shard_bytes is a number >= 1; got {shard_bytes!r}")
        source = self._source(backbone, key)
        name = writer_of(writer)
        with self._store.writing(name), in_eval_mode(source.backbone.model):
            self._index.refresh()
            if self._header is not None:
                check_teacher(self.place, self._header, source.backbone, weights)
            begin = partial(self._begun, source, weights, name)
            filling = Filling(self._store, self._index, source, begin, shard_bytes, name)
            return filling.run(loader, self._header, progress=progress)

    def estimate(
        self,
        backbone: Backbone | nn.Module,
        loader: Iterable[Mapping[str, Any]],
        *,
        key: str | Sequence[str] = "id",
    ) -> Estimate:
        """What :meth:`fill` would write, from the first batch; nothing is written."""
        source = self._source(backbone, key)
        with in_eval_mode(source.backbone.model):
            return first_estimate(self._store, self._wishes, self._header, source, loader)

    def signals(self, batch: Mapping[str, Any] | Sequence[Any] | Tensor, *names: str) -> Signals:
        """The teacher's signals for the examples of a batch, in their order, on the CPU.

        Args:
            batch: a batch with the entries that tell examples apart, whose masks say how its
                examples are padded; or the keys alone.
            names: the signals that are wanted; all by default.

        Raises:
            CacheError: an example that is not there, is damaged, or is not what the teacher saw.
        """
        return self._reader.signals(batch, names)

    def joining(
        self,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        *names: str,
        teacher: str | None = None,
    ) -> Callable[[list[Any]], dict[str, Any]]:
        """A ``collate_fn`` that adds the signals as the entry ``"teacher_signals"``.

        Reading and checking then happen in the workers of a DataLoader, ahead of the model; a
        distiller takes the entry by itself.

        Args:
            collate: makes a batch of examples; of several teachers, it may be what another one's
                ``joining`` returned.
            names: the signals that are wanted; all by default.
            teacher: of several teachers, its name.
        """
        self._index.read()  # once, for all workers that are forked
        return Joining(collate, self.signals, names, self.entries, teacher)

    def stream(self, *names: str) -> Iterator[tuple[list[Any], Signals]]:
        """Keys and signals of all examples, shard after shard: how files are read fastest."""
        return self._reader.stream(names)

    # a distiller asks these

    def check(
        self,
        recipe: AnyRecipe | Sequence[AnyRecipe],
        teacher: Backbone | nn.Module | None = None,
    ) -> None:
        """Refuse a recipe that needs more than is stored, or another teacher.

        Raises:
            CacheError: every signal or layer that is missing; what of the teacher is another.
        """
        check_needs(self.place, self.header, needs_of_recipes(recipe))
        self._index.read()
        if teacher is not None:
            backbone = teacher if isinstance(teacher, Backbone) else Backbone(teacher)
            check_teacher(self.place, self.header, backbone, None)

    def run(self, view: SideOfBatch, wanted: Wanted | None) -> Signals:
        """The signals of a distiller's batch."""
        names = (
            []
            if wanted is None
            else [one.name for one in self.header.signals if one.name in wanted]
        )
        return self.signals(view, *names)

    @property
    def entries(self) -> frozenset[str]:
        """The batch entries that it reads."""
        header = self.header
        masks = [a.follows.mask for one in header.signals for a in one.axes if a.follows]
        follows = {name for mask in masks for name in mask if isinstance(name, str)}
        return frozenset({*header.key, *header.compared, *follows})

    # care of the files

    @property
    def shards(self) -> list[str]:
        """The files with examples."""
        return sorted(self._index.shards)

    def sizes(self) -> dict[str, int]:
        """Signal -> the bytes of all its examples."""
        shards = self._index.shards.values()
        return {
            signal.name: sum(
                shard.bytes_of(part.name) for shard in shards for part in signal.every_part()
            )
            for signal in self.header.signals
        }

    def verify(self, *, remove: bool = False) -> list[Damage]:
        """Read every byte; what is damaged, and with ``remove`` no longer there afterwards.

        What was removed is stored again by the next fill.
        """
        found = list(damages(self._store, self.header))
        if remove:
            for one in found:
                self._store.remove(one.shard)
            self._index = Index(self._store, self.header.checksum)
        return found

    def export(
        self, place: str | Path, *, shard_bytes: int = 1 << 28, **storage_options: Any
    ) -> SignalCache:
        """Copy every example into another cache, checked, and in fewer files.

        For a store of objects, where files should be large. What says whose signals they are comes
        last: a copy that was interrupted is none yet.

        Raises:
            CacheError: something is there, or an example here is damaged.
        """
        export(self._index, self.header, Store(place, None, storage_options), shard_bytes)
        return SignalCache(place, storage_options=storage_options)

    def refresh(self) -> None:
        """Take in what other processes have stored since."""
        self._index.refresh()

    def __repr__(self) -> str:
        try:
            holds = f"{len(self)} examples"
        except CacheError:
            holds = "damaged"
        return f"SignalCache({self._store.place!r}, {holds})"

    # inside

    @property
    def _reader(self) -> Reader:
        return Reader(self.place, self._index, self.header, self._inputs)

    def _source(self, backbone: Backbone | nn.Module, key: str | Sequence[str]) -> Source:
        return source_of(self.place, self._wishes, self._header, backbone, key)

    def _begun(self, source: Source, weights: str | None, writer: str, ran: Ran) -> Header:
        """The header of the cache, which is made where there is none yet."""
        if self._header is not None:
            return self._header
        checksum = weights or weights_checksum(source.backbone.model)
        made = new_header(self._wishes, source, checksum, ran)
        if create_header(self._store, made, writer):
            self._header = made
            self._index.belongs_to(made.checksum)
            return made
        header = self._open()
        check_teacher(self.place, header, source.backbone, checksum)
        return header

    def __getstate__(self) -> dict[str, Any]:
        # a recipe is asked for where it is filled, and may hold what does not pickle
        return {**vars(self), "_wishes": self._wishes._replace(needs=None)}
