"""What is written down while a model runs; nothing is worked out before somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .._torch_private import in_backward, in_reentrant_checkpoint
from ..errors import CaptureError
from . import operations
from ._read.reading import Reading, check_no_attention, read, read_call
from ._watch.sighting import FusedCall, Owner, Sighting, Weighing

Seen = Sighting | FusedCall | Weighing


@dataclass(frozen=True)
class Chosen:
    """The modules and methods that a scope looks at.

    Attributes:
        classes: name of each chosen module -> its class's name.
        outputs: names of the modules whose output is wanted.
        returns: names of the methods whose return value is wanted.
        strict: whether a pattern chose the modules, so that each must record something.
        plain: name as ``named_modules()`` gives it -> name without what wrappers insert.
        every: the outputs and returns of which all calls are kept, not the last alone.
        matched: pattern and names -> those that match, worked out once.
    """

    classes: Mapping[str, str]
    outputs: tuple[str, ...]
    returns: tuple[str, ...]
    strict: bool
    plain: Mapping[str, str]
    every: frozenset[str] = frozenset()
    matched: dict[tuple[str, bool], tuple[str, ...]] = field(default_factory=dict, compare=False)


class Recorder:
    """The notes of one recording, taken by one thread; a new forward starts them afresh.

    Args:
        chosen: what is looked at.
        held: the modules whose tensors are kept; None: all.
        detach: keep the numbers and let go of the graph.
    """

    def __init__(self, chosen: Chosen, held: frozenset[str] | None, *, detach: bool) -> None:
        self.chosen, self.held, self.detach = chosen, held, detach
        self.with_grad = False
        self.ever: set[str] = set()  # recorded something in this or an earlier forward
        self.ran_ever: set[str] = set()
        self.started = False
        self._forget(frozenset())

    def _forget(self, examples: frozenset[int]) -> None:
        self.examples = examples
        self.seen: list[tuple[str, Seen]] = []
        self.notices: list[tuple[str, str]] = []
        self.ran: list[str] = []
        self.blind: list[str] = []  # called something that nobody can see into
        self.outputs: dict[str, list[Any]] = {}
        self.returned: dict[str, list[Any]] = {}
        self.entered: list[Any] = []  # what the module whose input is wanted was given, per call
        self._readings: dict[int, Reading | None] = {}

    def start(self, examples: frozenset[int]) -> None:
        """A forward of the whole model begins.

        Args:
            examples: how many examples the model may have been given.
        """
        self.with_grad = torch.is_grad_enabled()
        self.keep_score()
        self.started = bool(examples) or self.started
        self._forget(examples)

    def keep_score(self) -> None:
        """Remember who recorded something, before the next forward is started."""
        self.ran_ever |= set(self.ran)
        self.ever |= {
            name
            for i, (name, seen) in enumerate(self.seen)
            if is_certain(seen) or (isinstance(seen, Sighting) and self.reading(i) is not None)
        }

    def add(self, owner: Owner, seen: Seen) -> None:
        """Write down an attention that was seen."""
        name = owner[-1] if owner else ""
        if is_repeated() or (self.held is not None and name not in self.held):
            return
        if self.with_grad and not self.detach and not torch.is_grad_enabled():
            _refuse_reentrant(name)
            if seen.has_lost_gradient:
                seen.refused = (
                    "it is computed without gradient from tensors that have one (inside an "
                    "autograd.Function or no_grad), so that a loss on it would teach nothing or "
                    "half; tell capture how to read it with an OperationSpec, or detach=True"
                )
        if self.detach or not torch.is_grad_enabled():
            seen.detach()
        self.seen.append((name, seen))

    def keep_output(self, name: str, value: Any) -> None:
        """Write down what a module returned: of the last call, or of every one that is wanted."""
        self._keep(self.outputs, name, value)

    def keep_returned(self, name: str, value: Any) -> None:
        """Write down what a method returned, as of a module."""
        self._keep(self.returned, name, value)

    def _keep(self, kept: dict[str, list[Any]], name: str, value: Any) -> None:
        if name in kept and name in self.chosen.every:
            kept[name].append(value)
        else:
            kept[name] = [value]

    def blind_to(self, owner: Owner, kernel: str) -> None:
        """A foreign kernel ran that may compute attention."""
        self.blind.append(owner[-1])
        self.notice(owner, operations.cannot_see_into(kernel))

    def notice(self, owner: Owner, reason: str) -> None:
        """Write down why something could not be followed."""
        self.notices.append((owner[-1] if owner else "", reason))

    def reading(self, i: int) -> Reading | None:
        """The i-th sighting as an attention; None: it is none.

        Raises:
            CaptureError: it is one, and cannot be read.
        """
        if i not in self._readings:
            name, seen = self.seen[i]
            try:
                if isinstance(seen, Sighting):
                    self._readings[i] = read(seen, self.examples)
                elif isinstance(seen, Weighing):
                    check_no_attention(seen)
                    self._readings[i] = None
                else:
                    self._readings[i] = read_call(seen, self.examples)
            except CaptureError as reason:
                raise CaptureError(self.cannot_be_read(name, str(reason))) from None
        return self._readings[i]

    def cannot_be_read(self, name: str, why: str) -> str:
        """The message about an attention that was seen and is not understood."""
        cls = self.chosen.classes.get(name, "the model")
        return f"the attention of module {name!r} ({cls}) cannot be read: {why}"


def is_certain(seen: Seen) -> bool:
    """Whether it is an attention, whatever reading it may show."""
    return isinstance(seen, FusedCall) or (
        isinstance(seen, Sighting) and not seen.product.doubtful and seen.division is None
    )


def is_repeated() -> bool:
    """Gradient checkpointing runs a forward again inside the backward: nothing new."""
    return not torch.compiler.is_compiling() and in_backward()


def _refuse_reentrant(name: str) -> None:
    """Checkpointing with use_reentrant=True runs without gradient: a loss would teach nothing."""
    if torch.compiler.is_compiling():
        return
    if in_reentrant_checkpoint():
        raise CaptureError(
            f"module {name!r} runs inside a checkpoint with use_reentrant=True, which computes it "
            "without gradient: what is captured could teach nothing; checkpoint with "
            "use_reentrant=False, or capture with detach=True"
        )
