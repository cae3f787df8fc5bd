"""``python -m distillkit cache``: fill, describe, verify and copy a signal cache."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from .._backbone.backbone import Backbone
from .._objective.recipe import load_recipe
from .._plugins.specs import resolve
from ..errors import CacheError
from .cache import SignalCache
from .care import survey
from .sizes import described, error_of, examples_in, readable
from .store import Store


def run(arguments: argparse.Namespace) -> int:
    """Run one of the actions; 1 where something is damaged."""
    actions = {"fill": _fill, "info": _info, "verify": _verify, "export": _export}
    return actions[arguments.action](arguments)


def _fill(arguments: argparse.Namespace) -> int:
    sys.path.insert(0, str(Path.cwd()))  # as python itself does for a script
    backbone, loader = _made(arguments.target)
    recipes: list[Any] = arguments.recipe
    if arguments.teacher is not None:
        recipes = [load_recipe(one).of_teacher(arguments.teacher) for one in recipes]
    cache = SignalCache(
        arguments.place,
        recipes or None,
        error=arguments.error,
        preprocessing=arguments.preprocessing,
    )
    key = arguments.key or ["id"]
    if arguments.dry_run:
        print(cache.estimate(backbone, loader, key=key))
        return 0
    share_of_loader = _Share(loader)
    filled = cache.fill(
        backbone, share_of_loader, key=key, weights=arguments.weights, writer=arguments.writer
    )
    if filled.estimate is not None:
        print(filled.estimate)
    share = filled.teacher_seconds / filled.seconds if filled.seconds else 0.0
    print(
        f"stored {filled.stored} examples, {readable(filled.bytes)}, in {filled.seconds:.1f} s "
        f"({share:.0%} of them in the teacher); {filled.known} were there"
    )
    if share_of_loader.ranks > 1:
        print(_all_together(cache, examples_in(loader)))
    return 0


def _all_together(cache: SignalCache, wanted: int | None) -> str:
    """What all ranks have stored, and whether that can be all that there is."""
    cache.refresh()
    if wanted is None or len(cache) >= wanted:
        return f"all ranks together have stored {len(cache):,} examples"
    return (
        f"all ranks together have stored {len(cache):,} of {wanted:,} examples so far. If it is "
        "less when all have ended, their loaders do not bring the same batches, of which each "
        "takes every so-manyth: shuffle=False, and no DistributedSampler. The same line again "
        "stores what is missing"
    )


class _Share:
    """The batches of this rank, where torchrun started several: every so-manyth."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader
        self._rank = int(os.environ.get("RANK", "0"))
        self.ranks = int(os.environ.get("WORLD_SIZE", "1"))
        self.dataset = getattr(loader, "dataset", None)

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._loader), self._rank, None, self.ranks)

    def __len__(self) -> int:
        if not isinstance(self._loader, Sized):
            raise TypeError("this loader does not say how many batches it has")
        return len(range(self._rank, len(self._loader), self.ranks))


def _made(target: str) -> tuple[Backbone, Iterable[Mapping[str, Any]]]:
    if ":" not in target:
        raise CacheError(f'cache fill takes "package.module:function"; got {target!r}')
    try:
        made: Any = resolve(target)()
    except ImportError as error:
        raise CacheError(f"{target!r}: {error}") from None
    fits = isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Iterable)
    if not fits or not isinstance(made[0], (nn.Module, Backbone)):
        raise CacheError(
            f"{target!r} returns (teacher, loader), a module or a Backbone and batches; got "
            f"{type(made).__name__}"
        )
    backbone = made[0] if isinstance(made[0], Backbone) else Backbone(made[0])
    return backbone, made[1]


def _info(arguments: argparse.Namespace) -> int:
    header = SignalCache(arguments.place).header
    found = survey(Store(arguments.place, None, {}), header)
    rows = [
        ("teacher", header.teacher),
        ("weights", header.weights),
        ("adapter", header.adapter),
        ("preprocessing", header.preprocessing or "not declared"),
        ("filled by", f"distillkit {header.version}"),
        ("examples", f"{found.examples:,}, told apart by {', '.join(header.key)}"),
        ("inputs compared", ", ".join(header.compared) or "none: no entry is of examples"),
        ("allowed error", f"{header.error:g}"),
    ]
    for name, text in rows:
        print(f"{name:16} {text}")
    total = 0
    for signal in header.signals:
        form, coding = described(signal)
        layers = "" if signal.depth is None else f", layers {list(signal.layers)} of {signal.depth}"
        error = error_of(signal)
        measured = f", mean error {error:.2g}" if error else ""
        size = sum(found.bytes.get(part.name, 0) for part in signal.every_part())
        total += size
        each = readable(size / max(1, found.examples))
        print(f"{signal.name}: {each} an example, {form}, {coding}{measured}{layers}")
    print(f"{readable(total)} of signals in {found.files} files")
    for one in found.damaged:
        print(f"not counted: {one.problem}")
    return 1 if found.damaged else 0


def _verify(arguments: argparse.Namespace) -> int:
    cache = SignalCache(arguments.place)
    damaged = cache.verify(remove=arguments.remove)
    for one in damaged:
        lost = "its examples" if one.examples is None else f"{one.examples} examples"
        print(f"{one.shard}: {one.problem}")
        print(f"    {'removed' if arguments.remove else 'damaged'}: {lost}")
    if not damaged:
        print(f"{len(cache):,} examples are as they were written")
    return 1 if damaged else 0


def _export(arguments: argparse.Namespace) -> int:
    copy = SignalCache(arguments.place).export(
        arguments.to, shard_bytes=int(arguments.shard_mb * 1e6)
    )
    print(f"{len(copy):,} examples are in {arguments.to}")
    return 0
