"""A teacher's signals on disk, by the examples' own names."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._backbone.backbone import Backbone, Wanted
from .._backbone.batch import SideOfBatch
from .._backbone.signals import Signals
from .._objective.objective import Objective
from .._objective.recipe import Recipe, load_recipe
from .._objective.teacher import SIGNALS
from .._version import installed_version
from ..errors import CacheError, CacheWarning, OptionError, unknown_name
from .care import Damage, damages
from .choices import Codings, check_codings
from .filling import Filled, Filling, Ran, Source, Writer, in_eval_mode, writer_of
from .identity import (
    HEADER,
    Header,
    adapter_name,
    check_same,
    preprocessing_name,
    teacher_name,
    weights_checksum,
)
from .index import Index
from .inputs import check_inputs, comparable, entries_read, fingerprints, key_of, keys_of, seen
from .needs import Needs, needs_of, positions, wanted_of
from .packing import pack
from .planning import plan_signals
from .shard import Example, parsed_name
from .sizes import Estimate, estimate_of, examples_in
from .spec import SignalSpec
from .store import Store
from .unpacking import unpack

SHARD_BYTES = 1 << 26

AnyRecipe = Recipe | Objective | str | Path


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
        self._error, self._codings = error, dict(codings or {})
        self._store = Store(place, local, dict(storage_options or {}))
        self._needs = None if recipe is None else needs_of(map(_objective, _listed(recipe)))
        self._preprocessing = preprocessing_name(preprocessing)
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
        if self._preprocessing is not None:
            stored, given = {"preprocessing": header.preprocessing}, self._preprocessing
            check_same(self._store.place, stored, {"preprocessing": given})
        if self._error is not None:
            check_same(self._store.place, {"error": header.error}, {"error": float(self._error)})
        check_codings(self._store.place, header.signals, self._codings)
        if self._needs is not None:
            self._check_needs(self._needs)
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
                self._check_teacher(source.backbone, weights)
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
            for batch in loader:
                ran = source.run(batch)
                if not ran.keys:
                    continue
                header = self._header or self._new_header(source, "", ran)
                inputs = seen(ran.view, header, len(ran.keys))
                every = range(len(ran.keys))
                found = pack(ran.signals, header.signals, ran.keys, every, inputs, ran.view)
                free = self._store.free_bytes()
                return estimate_of(header, found, examples_in(loader), free)
        raise CacheError("the loader brought no example")

    def signals(self, batch: Mapping[str, Any] | Sequence[Any] | Tensor, *names: str) -> Signals:
        """The teacher's signals for the examples of a batch, in their order, on the CPU.

        Args:
            batch: a batch with the entries that tell examples apart, whose masks say how its
                examples are padded; or the keys alone.
            names: the signals that are wanted; all by default.

        Raises:
            CacheError: an example that is not there, is damaged, or is not what the teacher saw.
        """
        header = self.header
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

    def joining(
        self, collate: Callable[[list[Any]], Mapping[str, Any]], *names: str
    ) -> Callable[[list[Any]], dict[str, Any]]:
        """A ``collate_fn`` that adds the signals as the entry ``"teacher_signals"``.

        Reading and checking then happen in the workers of a DataLoader, ahead of the model; a
        distiller takes the entry by itself.
        """
        self._index.read()  # once, for all workers that are forked
        return _Joining(self, collate, names)

    def stream(self, *names: str) -> Iterator[tuple[list[Any], Signals]]:
        """Keys and signals of all examples, shard after shard: how files are read fastest."""
        specs = self._specs(names)
        for keys in self._index.in_shards():
            yield [json.loads(key) for key in keys], self._read(keys, None, specs)

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
        self._check_needs(needs_of(map(_objective, _listed(recipe))))
        self._index.read()
        if teacher is not None:
            backbone = teacher if isinstance(teacher, Backbone) else Backbone(teacher)
            self._check_teacher(backbone, None)

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
        to = Store(place, None, storage_options)
        there = to.names()
        if there:
            unfinished = HEADER not in there and all(map(parsed_name, there))
            if unfinished:
                raise CacheError(f"{place} has a part of an export that was interrupted: remove it")
            raise CacheError(f"{place} is not empty: export into a new folder")
        header = self.header
        parts = [part for signal in header.signals for part in signal.every_part()]
        with to.writing("export"):
            out = Writer(to, "export", 0, header, shard_bytes, lambda _: None)
            for keys in self._index.in_shards():
                out.add(self._index.examples(keys, parts))
            out.flush()
            to.write(HEADER, header.to_bytes(), writer="export")
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

    def _specs(self, names: Sequence[str]) -> list[SignalSpec]:
        known = {one.name: one for one in self.header.signals}
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
        compared = self.header.compared
        wanted = compared if self._inputs is None else self._inputs
        unknown = [name for name in wanted if name not in compared]
        if unknown:
            raise CacheError(
                f"the fingerprints of {', '.join(map(repr, unknown))} are not in {self.place}, "
                f"which has those of {', '.join(map(repr, compared)) or 'no entry'}"
            )
        there = comparable(view, wanted, len(keys))
        if not there:
            raise CacheError(
                "nothing shows that these examples are what the teacher saw: the batch has none of "
                f"{', '.join(map(repr, compared or self.header.inputs))} with an entry for each "
                "example. Keep one of them in the batch, or vouch for it: "
                "SignalCache(..., inputs=())"
            )
        stored = {name: [one.inputs[name] for one in examples] for name in there}
        check_inputs(keys, stored, fingerprints(view, there, self.header.inputs))

    def _source(self, backbone: Backbone | nn.Module, key: str | Sequence[str]) -> Source:
        one = backbone if isinstance(backbone, Backbone) else Backbone(backbone)
        entries = (key,) if isinstance(key, str) else tuple(key)
        if self._header is not None:
            header = self._header
            check_same(self.place, {"key": header.key}, {"key": entries})
            wanted = {s.name: frozenset(s.layers) for s in header.signals}
            return Source(one, entries, wanted)
        if self._needs is None:
            raise CacheError("what is to be stored? Name the recipe: SignalCache(place, recipe)")
        return Source(one, entries, wanted_of(self._needs))

    def _begun(self, source: Source, weights: str | None, writer: str, ran: Ran) -> Header:
        """The header of the cache, which is made where there is none yet."""
        if self._header is None:
            checksum = weights or weights_checksum(source.backbone.model)
            made = self._new_header(source, checksum, ran)
            self._check_orphans(made)
            if not self._store.create(HEADER, made.to_bytes(), writer=writer):  # another rank's is
                self._open()
                self._check_teacher(source.backbone, checksum)
            else:
                self._header = made
                self._index.belongs_to(made.checksum)
        return self.header

    def _check_orphans(self, made: Header) -> None:
        """Refuse to begin among shards whose header was lost, unless it was this one."""
        try:
            Index(self._store, made.checksum).refresh()
        except CacheError:
            if HEADER not in self._store.names():  # otherwise another rank has begun just now
                raise

    def _new_header(self, source: Source, weights: str, ran: Ran) -> Header:
        assert self._needs is not None
        inputs = entries_read(ran.used)
        return Header(
            version=installed_version(),
            teacher=teacher_name(source.backbone.model),
            weights=weights,
            adapter=adapter_name(source.backbone.adapter),
            preprocessing=self._preprocessing,
            key=source.key,
            inputs=inputs,
            compared=comparable(ran.view, inputs, len(ran.keys)),
            error=self._error or 0.0,
            signals=plan_signals(
                ran.signals, self._needs, ran.view, self._error or 0.0, self._codings
            ),
        )

    def _check_teacher(self, backbone: Backbone, weights: str | None) -> None:
        header = self.header
        given = {
            "version": installed_version(),
            "teacher": teacher_name(backbone.model),
            "adapter": adapter_name(backbone.adapter),
            "weights": weights or weights_checksum(backbone.model),
        }
        check_same(self.place, header.model_dump(), given)

    def _check_needs(self, needs: Needs) -> None:
        stored = {one.name: one for one in self.header.signals}
        lacking = []
        for name, need in needs.items():
            if name not in stored:
                lacking.append(f"  {name!r}: not stored")
                continue
            lacking += _lacking(stored[name], need)
        if lacking:
            raise CacheError(
                f"the recipe needs what {self.place} does not hold:\n" + "\n".join(lacking) + "\n"
                "Fill another cache with this recipe; SignalCache(place, [recipe, other]) stores "
                "for several"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name != "_needs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _needs=None)


class _Joining:
    """A collate function with signals; a class, so that it goes to workers that are spawned."""

    def __init__(self, cache: SignalCache, collate: Any, names: Sequence[str]) -> None:
        self._cache, self._collate, self._names = cache, collate, names

    @property
    def columns(self) -> list[str]:
        """The columns that a Trainer has to keep: those that are read, and the collator's own."""
        return sorted({*self._cache.entries, *getattr(self._collate, "columns", ())})

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        batch = dict(self._collate(examples))
        return {**batch, SIGNALS: self._cache.signals(batch, *self._names)}


def _lacking(spec: SignalSpec, need: Any) -> Iterator[str]:
    """What a stored signal lacks of what is needed."""
    if spec.depth is not None:
        layers = [i for i in positions(need.layers, spec.depth) if i not in spec.layers]
        if layers:
            yield f"  {spec.name!r}: layers {layers}; stored are {list(spec.layers)}"
    if need.tokens and not spec.tokens:
        yield f"  {spec.name!r}: which tokens its entries are, which an aligner asks"
    if spec.averages_heads and not need.averages_heads:
        yield f"  {spec.name!r}: the heads apart; their mean is stored"
    if need.padding and spec.axes and "valid" not in spec.axes[0].tokens:
        yield f'  {spec.name!r}: padded positions, which rows = "all" counts'


def _listed(recipe: AnyRecipe | Sequence[AnyRecipe]) -> Sequence[AnyRecipe]:
    return recipe if isinstance(recipe, (list, tuple)) else [recipe]  # type: ignore[list-item]


def _objective(recipe: AnyRecipe) -> Objective:
    if isinstance(recipe, (str, Path)):
        recipe = load_recipe(recipe)
    return recipe if isinstance(recipe, Objective) else recipe.build()
