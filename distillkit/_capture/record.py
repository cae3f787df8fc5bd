"""What a capture holds: the attentions and outputs of the model's last forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .._attention import Attention
from ..errors import CaptureError, unknown_name
from .follow import Sighting
from .names import pattern_regex
from .operations import FusedCall
from .reading import Reading, read, read_call

Seen = Sighting | FusedCall


class Record:
    """What the chosen modules did in the model's last forward.

    While the model runs, what is seen is only written down; it is read when it is asked for.
    """

    def __init__(self, classes: dict[str, str], outputs: Iterable[str], *, strict: bool) -> None:
        self._classes = classes
        self._wanted_outputs = tuple(outputs)
        self._strict = strict
        self._ever: set[str] = set()
        self._read: dict[int, Reading] = {}
        self.start(frozenset())

    def start(self, examples: frozenset[int]) -> None:
        """A new forward: forget the last one.

        Args:
            examples: how many examples the model may have been given.
        """
        self.examples = examples
        self.seen: list[tuple[str, Seen]] = []
        self.notices: list[tuple[str, str]] = []
        self.ran: list[str] = []
        self._outputs: dict[str, Any] = {}
        self._returned: dict[str, Any] = {}
        self._read = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The chosen modules; where no pattern chose, those that recorded something."""
        if self._strict:
            return tuple(self._classes)
        recorded = {name for name, seen in self.seen if _counts(seen)}
        return tuple(name for name in self._classes if name in recorded)

    def __getitem__(self, name: str) -> Attention:
        """The one attention that the module computed.

        Raises:
            UnknownNameError: no such module was chosen.
            CaptureError: it recorded nothing, or ran several times (see :meth:`calls`).
        """
        calls = self.calls(name)
        if len(calls) > 1:
            raise CaptureError(
                f"{name!r} computed {len(calls)} attentions in one forward; "
                f"record.calls({name!r}) has them in order, and an adapter names one as "
                f'"{name}#1" (the second)'
            )
        return calls[0]

    def calls(self, name: str) -> tuple[Attention, ...]:
        """Every attention that the module computed in the last forward, in order."""
        return tuple(reading.attention for reading in self.readings(name))

    def readings(self, name: str) -> tuple[Reading, ...]:
        """The same, each with what the model made of it where that was kept."""
        if name not in self._classes:
            raise unknown_name("captured module", name, self.names)
        own = [(i, seen) for i, (owner, seen) in enumerate(self.seen) if owner == name]
        refused = next((seen.refused for _, seen in own if seen.refused), "")
        if refused:
            raise CaptureError(self._cannot_be_read(name, refused))
        found = []
        for i, seen in own:
            if _counts(seen):
                found.append(self._reading(i, name, seen))
        if not found:
            raise CaptureError(self._nothing(name))
        return tuple(found)

    def kinds(self, name: str) -> tuple[str, ...]:
        """Of each call, whether queries and keys are of the same tokens: ``self`` or ``cross``."""
        attentions = iter(self.calls(name))
        kinds = []
        for owner, seen in self.seen:
            if owner == name and _counts(seen):
                _, _, q, k = next(attentions).shape
                same = q == k if seen.same_source is None else seen.same_source
                kinds.append("self" if same else "cross")
        return tuple(kinds)

    def _reading(self, i: int, name: str, seen: Seen) -> Reading:
        if i not in self._read:
            try:
                self._read[i] = (
                    read(seen, self.examples) if isinstance(seen, Sighting) else read_call(seen)
                )
            except CaptureError as reason:
                raise CaptureError(self._cannot_be_read(name, str(reason))) from None
        return self._read[i]

    def layers(self, pattern: str) -> tuple[Attention, ...]:
        """The attentions of the modules that match, bottom to top; ``"x.*.att#1"``: 2nd calls."""
        pattern, _, call = pattern.partition("#")
        names = [name for name in self._classes if pattern_regex(pattern).fullmatch(name)]
        if not call:
            return tuple(self[name] for name in names)
        return tuple(self.calls(name)[int(call)] for name in names)

    def outputs(self, pattern: str) -> tuple[Any, ...]:
        """What the modules that match returned, bottom to top."""
        names = [name for name in self._wanted_outputs if pattern_regex(pattern).fullmatch(name)]
        return tuple(self.output(name) for name in names)

    def output(self, name: str) -> Any:
        """What the module named in ``outputs=`` returned."""
        return _recorded("output", name, self._outputs, self._wanted_outputs)

    def returned(self, name: str) -> Any:
        """What the bound method named in ``returns=`` returned."""
        return _recorded("returned value", name, self._returned, self._returned)

    @property
    def unread(self) -> Mapping[str, str]:
        """Modules that show something like an attention which cannot be read, and why."""
        found = {}
        for name in self._classes:
            try:
                if any(owner == name for owner, _ in self.seen):
                    self.readings(name)
            except CaptureError as reason:
                if any(owner == name and _counts(seen) for owner, seen in self.seen):
                    found[name] = str(reason)
        return found

    def check(self) -> None:
        """Refuse a capture in which a chosen module never recorded anything."""
        ever = self._ever | {name for name, seen in self.seen if _counts(seen)}
        for reason in self.unread.values():
            raise CaptureError(reason)
        if not ever and not self._outputs and not self._returned:
            reasons = [self._nothing(name) for name, _ in self.notices]
            raise CaptureError(
                next(iter(reasons), "")
                or "nothing was recorded: the model that was given to capture did not run inside "
                "the `with` block, or no chosen module computes a softmax of query @ key^T in "
                f"Python (chosen: {_some(self._classes)})"
            )
        missing = [name for name in self._classes if name not in ever]
        if self._strict and missing:
            raise CaptureError(self._nothing(missing[0]))

    def keep_score(self) -> None:
        """Remember who recorded something, before the next forward is started."""
        self._ever |= {name for name, seen in self.seen if _counts(seen)}

    def add_output(self, name: str, value: Any) -> None:
        self._outputs[name] = value

    def add_returned(self, name: str, value: Any) -> None:
        self._returned[name] = value

    def _cannot_be_read(self, name: str, why: str) -> str:
        return f"the attention of module {name!r} ({self._classes[name]}) cannot be read: {why}"

    def _nothing(self, name: str) -> str:
        why = dict(self.notices).get(
            name,
            "it did not run, or it computes no scaled_dot_product_attention and no softmax of "
            "query @ key^T of its own (is the attention in a child or parent module?)",
        )
        return (
            f"module {name!r} ({self._classes[name]}) was chosen but recorded no attention: {why}"
        )


def _counts(seen: Seen) -> bool:
    """Whether it is an attention as far as anybody saw: a doubtful one weighs values."""
    return isinstance(seen, FusedCall) or not seen.product.doubtful or seen.values is not None


def _recorded(what: str, name: str, found: dict[str, Any], wanted: Iterable[str]) -> Any:
    if name in found:
        return found[name]
    if name not in wanted:
        raise unknown_name(f"captured {what}", name, wanted)
    raise CaptureError(f"the {what} of {name!r} was not recorded: it did not run in this forward")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(repr(name) for name in listed[:5])
    return shown if len(listed) <= 5 else f"{shown} and {len(listed) - 5} more"
