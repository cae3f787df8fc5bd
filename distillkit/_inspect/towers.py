"""The attentions of a model in stacks of layers, and what enters the bottom of each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._attention import Attention
from .._capture.diagnosis import check_not_stale
from .._capture.record import Record
from .._capture.scope import Scope
from .._capture.undisturbed import in_eval_mode
from ..errors import CaptureError
from ..testing.silence import silence

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


@dataclass(frozen=True)
class Tower:
    """Layers of attention that one pattern names.

    Attributes:
        pattern: as `streams` takes it.
        names: its modules, bottom to top.
        call: which of the attentions that each module computes in a forward.
        kind: ``"self"`` or ``"cross"``.
        shapes: ``(b, h, q, k)`` of each layer.
        problem: why no stream can be made of it; empty where one can.
    """

    pattern: str
    names: tuple[str, ...]
    call: int
    kind: str
    shapes: tuple[tuple[int, int, int, int], ...]
    problem: str = ""

    @property
    def examples(self) -> int:
        return self.shapes[0][0]

    @property
    def lengths(self) -> tuple[int, int]:
        """How many queries and keys."""
        return self.shapes[0][2], self.shapes[0][3]

    def __str__(self) -> str:
        layers = f"{len(self.names)} layer{'s' * (len(self.names) > 1)}"
        return f'"{self.pattern}" ({self.kind}, {layers})'


class Entering(NamedTuple):
    """What enters the bottom layer of a tower.

    Attributes:
        query: ``(b, h, q, d)``.
        key: ``(b, h, k, d)``.
        kept: boolean ``(b, q, k)``: what some head keeps.
    """

    query: Tensor
    key: Tensor
    kept: Tensor

    def of(self, side: str) -> Tensor:
        return self.query if side == "queries" else self.key


class Forward(NamedTuple):
    """One forward: what entered each tower, and the model's output."""

    entering: Mapping[Tower, Entering]
    output: Any


class Watched:
    """A model that is run with one thing changed after the other.

    Args:
        model: any module; it is run in eval mode, without gradient, from one random state.
        batch: what it is called with, on whatever device; here it is on the CPU, for looking.
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        self.model = model
        self._devices = {n: x.device for n, x in batch.items() if isinstance(x, Tensor)}
        self.batch = {n: x.cpu() if n in self._devices else x for n, x in batch.items()}
        self.towers = tuple(_towers(model, batch))
        usable = dict.fromkeys(tower.names[0] for tower in self.readable)
        self._scope = Scope(model, list(usable)) if usable else None
        self._names = Scope(model, ()).names

    @property
    def readable(self) -> tuple[Tower, ...]:
        """The towers that a stream can be made of."""
        return tuple(tower for tower in self.towers if not tower.problem)

    def forward(
        self, batch: Mapping[str, Any], *, alone: Tower | None = None, seed: int = 0
    ) -> Forward:
        """Run the model once.

        Args:
            batch: what it is called with.
            alone: every attention but that of this tower returns zeros, so that nothing else mixes
                tokens.
            seed: the random state.
        """
        assert self._scope is not None
        quiet = [] if alone is None else self._others(alone)
        with _undisturbed(self.model, seed), silence(quiet):
            with self._scope.recording() as recorder:
                output = self.model(**self._placed(batch))
            record = Record(recorder)
            entering = {tower: _entering(record, tower) for tower in self.readable}
        return Forward(entering, output)

    def outputs(self, patterns: Iterable[str]) -> Mapping[str, Any]:
        """What the modules that match some patterns return, by name."""
        scope = Scope(self.model, [self.towers[0].names[0]], outputs=list(patterns))
        with _undisturbed(self.model, 0), scope.recording() as recorder:
            self.model(**self._placed(self.batch))
        return {name: calls[-1] for name, calls in recorder.outputs.items()}

    def _placed(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch on the devices that the given one was on."""
        return {n: x.to(self._devices[n]) if n in self._devices else x for n, x in batch.items()}

    def count(self, pattern: str) -> int:
        """How many modules a pattern names."""
        return len(self._names.matching(pattern))

    def _others(self, alone: Tower) -> list[nn.Module]:
        modules = self._names.modules
        own = {modules[name] for name in alone.names}
        others = dict.fromkeys(modules[name] for tower in self.towers for name in tower.names)
        return [x for x in others if not any(x is one or one in set(x.modules()) for one in own)]


def _towers(model: nn.Module, batch: Mapping[str, Any]) -> Iterator[Tower]:
    """The attentions that are read, in stacks, in the order of the model."""
    scope = Scope(model, (), keep_outputs=True)
    with _undisturbed(model, 0), scope.recording() as recorder:
        model(**batch)
    scope.close()
    check_not_stale(recorder, scope.compiled())
    record = Record(recorder)
    stacks: dict[tuple[str, int, str], list[tuple[str, Attention]]] = {}
    with torch.no_grad():
        for name in record.names:
            kinds = record.kinds(name)
            for call, attention in enumerate(record.calls(name)):
                pattern = _NUMBER.sub("*", name) + (f"#{call}" if len(kinds) > 1 else "")
                stacks.setdefault((pattern, call, kinds[call]), []).append((name, attention))
    for (pattern, call, kind), layers in stacks.items():
        for own, part in _parts(pattern, layers):
            names = tuple(name for name, _ in part)
            shapes = tuple(attention.shape for _, attention in part)
            problem = _problem(part, scope.names.matching(own), own)
            yield Tower(own, names, call, kind, shapes, problem)


def _parts(
    pattern: str, layers: list[tuple[str, Attention]]
) -> Iterator[tuple[str, list[tuple[str, Attention]]]]:
    """A stack, or its stages where their lengths are unequal, with the numbers that they share."""
    by_length: dict[tuple[int, ...], list[tuple[str, Attention]]] = {}
    for name, attention in layers:
        by_length.setdefault(attention.shape[2:], []).append((name, attention))
    if len(by_length) == 1:
        yield pattern, layers
        return
    calls = pattern[pattern.index("#") :] if "#" in pattern else ""
    for part in by_length.values():
        segments = zip(*(name.split(".") for name, _ in part), strict=True)
        shared = [one[0] if len(set(one)) == 1 else "*" for one in segments]
        yield ".".join(shared) + calls, part


def _problem(layers: list[tuple[str, Attention]], found: list[str], pattern: str) -> str:
    shapes = {attention.shape[2:] for _, attention in layers}
    if not pattern:
        return "the model itself attends, and `streams` names modules in it"
    if set(found) != {name for name, _ in layers}:
        others = [name for name in found if name not in {name for name, _ in layers}]
        return f"the pattern also matches {others[0]!r}, which does not attend so"
    if len(shapes) > 1:
        sizes = ", ".join(f"{q} x {k}" for q, k in sorted(shapes, reverse=True))
        return f"its layers are of unequal lengths ({sizes}), and a stream is of one length"
    try:
        layers[0][1].query  # noqa: B018
    except (AttributeError, CaptureError):
        return "its scores are replayed, and no queries and keys make them"
    return ""


def _entering(record: Record, tower: Tower) -> Entering:
    attention = record.calls(tower.names[0])[tower.call].detach()
    b, h, q, k = attention.shape
    keep = attention.keep()
    kept = torch.ones(b, q, k, dtype=torch.bool) if keep is None else keep.expand(b, h, q, k).any(1)
    return Entering(attention.query, attention.key, kept.cpu())


@contextlib.contextmanager
def _undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Eval mode, no gradient and one random state inside; everything as before outside."""
    with in_eval_mode(model), torch.no_grad():
        torch.manual_seed(seed)
        yield
