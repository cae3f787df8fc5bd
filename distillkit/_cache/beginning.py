"""What is decided on the first batch that a teacher runs on: the header of a new cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from .._backbone.backbone import Backbone
from .._version import installed_version
from ..errors import CacheError
from .agreement import check_needs
from .choices import check_codings
from .filling import Ran, Source
from .identity import HEADER, Header, adapter_name, check_same, teacher_name
from .index import Index
from .inputs import comparable, entries_read, seen
from .needs import Needs, wanted_of
from .packing import pack
from .planning import plan_signals
from .sizes import Estimate, estimate_of, examples_in
from .store import Store


class Wishes(NamedTuple):
    """What somebody asks of a cache when it is made.

    Attributes:
        needs: of his recipes; None: he named none.
        error: the largest mean error of a batch; None: as the cache says.
        codings: signal -> coding.
        preprocessing: its name or checksum.
    """

    needs: Needs | None
    error: float | None
    codings: Mapping[str, str]
    preprocessing: str | None


def check_wishes(place: str, header: Header, wishes: Wishes) -> None:
    """Refuse a cache that is another one than somebody asks for.

    Raises:
        CacheError: what is another.
    """
    if wishes.preprocessing is not None:
        stored, given = {"preprocessing": header.preprocessing}, wishes.preprocessing
        check_same(place, stored, {"preprocessing": given})
    if wishes.error is not None:
        check_same(place, {"error": header.error}, {"error": float(wishes.error)})
    check_codings(place, header.signals, wishes.codings)
    if wishes.needs is not None:
        check_needs(place, header, wishes.needs)


def source_of(
    place: str,
    wishes: Wishes,
    header: Header | None,
    backbone: Backbone | nn.Module,
    key: str | Sequence[str],
) -> Source:
    """A teacher that runs for a cache: for the one that is there, or for a recipe's needs.

    Raises:
        CacheError: examples are told apart by other entries; no cache and no recipe.
    """
    one = backbone if isinstance(backbone, Backbone) else Backbone(backbone)
    entries = (key,) if isinstance(key, str) else tuple(key)
    if header is not None:
        check_same(place, {"key": header.key}, {"key": entries})
        return Source(one, entries, {s.name: frozenset(s.layers) for s in header.signals})
    if wishes.needs is None:
        raise CacheError("what is to be stored? Name the recipe: SignalCache(place, recipe)")
    return Source(one, entries, wanted_of(wishes.needs))


def new_header(wishes: Wishes, source: Source, weights: str, ran: Ran) -> Header:
    """Whose signals a new cache holds, and how they are written."""
    assert wishes.needs is not None
    error = wishes.error or 0.0
    inputs = entries_read(ran.used)
    return Header(
        version=installed_version(),
        teacher=teacher_name(source.backbone.model),
        weights=weights,
        adapter=adapter_name(source.backbone.adapter),
        preprocessing=wishes.preprocessing,
        key=source.key,
        inputs=inputs,
        compared=comparable(ran.view, inputs, len(ran.keys)),
        error=error,
        signals=plan_signals(ran.signals, wishes.needs, ran.view, error, wishes.codings),
    )


def first_estimate(
    store: Store,
    wishes: Wishes,
    header: Header | None,
    source: Source,
    loader: Iterable[Mapping[str, Any]],
) -> Estimate:
    """What a fill would write, from the first batch that has examples.

    Raises:
        CacheError: there is none.
    """
    for batch in loader:
        ran = source.run(batch)
        if not ran.keys:
            continue
        planned = header or new_header(wishes, source, "", ran)
        inputs = seen(ran.view, planned, len(ran.keys))
        every = range(len(ran.keys))
        found = pack(ran.signals, planned.signals, ran.keys, every, inputs, ran.view)
        return estimate_of(planned, found, examples_in(loader), store.free_bytes())
    raise CacheError("the loader brought no example")


def create_header(store: Store, made: Header, writer: str) -> bool:
    """Begin a cache with this header; False: another rank has begun it.

    Raises:
        CacheError: shards are there whose header was lost, and it was not this one.
    """
    try:
        Index(store, made.checksum).refresh()
    except CacheError:
        if HEADER not in store.names():  # otherwise another rank has begun just now
            raise
    return store.create(HEADER, made.to_bytes(), writer=writer)
