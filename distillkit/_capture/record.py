"""What a capture holds: the attentions and outputs of the model's last forward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._attention import Attention
from ..errors import CaptureError, unknown_name
from .names import pattern_regex


class Record:
    """What the chosen modules did in the model's last forward."""

    def __init__(self, names: dict[str, str], outputs: Iterable[str], *, strict: bool) -> None:
        self._classes = names
        self._wanted_outputs = tuple(outputs)
        self._strict = strict
        self._ever: set[str] = set()
        self._failures: dict[str, str] = {}
        self.clear()

    def clear(self) -> None:
        """Forget the last forward."""
        self._attentions: dict[str, list[Attention]] = {}
        self._outputs: dict[str, Any] = {}
        self._returned: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The chosen modules; where no pattern chose, those that recorded something."""
        return tuple(self._classes if self._strict else self._attentions)

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
        if name not in self._classes:
            raise unknown_name("captured module", name, self.names)
        found = self._attentions.get(name, [])
        if not found:
            raise CaptureError(self._nothing(name))
        return tuple(found)

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

    def check(self) -> None:
        """Refuse a capture in which a chosen module never recorded anything."""
        if not self._ever and not self._outputs and not self._returned:
            reasons = [self._nothing(name) for name in self._failures]
            raise CaptureError(
                "; ".join(reasons)
                or "nothing was recorded: the model that was given to capture did not run inside "
                "the `with` block, or no chosen module computes a softmax of query @ key^T in "
                f"Python (chosen: {_some(self._classes)})"
            )
        missing = [name for name in self._classes if name not in self._ever]
        if self._strict and missing:
            raise CaptureError(self._nothing(missing[0]))

    def add(self, name: str, attention: Attention) -> None:
        self._ever.add(name)
        self._attentions.setdefault(name, []).append(attention)

    def add_output(self, name: str, value: Any) -> None:
        self._outputs[name] = value

    def add_returned(self, name: str, value: Any) -> None:
        self._returned[name] = value

    def add_failure(self, name: str, reason: str) -> None:
        self._failures[name] = reason

    def _nothing(self, name: str) -> str:
        why = self._failures.get(
            name,
            "it did not run, or it computes no scaled_dot_product_attention and no softmax of "
            "query @ key^T of its own (is the attention in a child or parent module?)",
        )
        return (
            f"module {name!r} ({self._classes[name]}) was chosen but recorded no attention: {why}"
        )


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
