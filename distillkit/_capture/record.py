"""What a capture holds: the attentions and outputs of the model's last forward."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from .._attention import Attention
from ..errors import CaptureError, CaptureWarning, unknown_name
from .names import pattern_regex
from .reading import Reading, check_unwritten, read, read_call
from .sighting import FusedCall, Product, Sighting

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
        self._ran_ever: set[str] = set()
        self._started = False
        self._read: dict[int, Reading | None] = {}
        self.start(frozenset())

    def start(self, examples: frozenset[int]) -> None:
        """A new forward: forget the last one.

        Args:
            examples: how many examples the model may have been given.
        """
        self._started = bool(examples) or self._started
        self.examples = examples
        self.seen: list[tuple[str, Seen]] = []
        self.notices: list[tuple[str, str]] = []
        self.ran: list[str] = []
        self.blind: list[str] = []  # called something that nobody can see into
        self._outputs: dict[str, Any] = {}
        self._returned: dict[str, Any] = {}
        self._read = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The chosen modules; where no pattern chose, those whose attention is read."""
        if self._strict:
            return tuple(self._classes)
        owners = dict.fromkeys(name for name, _ in self.seen)
        read = {name for name in owners if name not in self.unread and self._own(name)}
        return tuple(name for name in self._classes if name in read)

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
        own = self._own(name)
        if not own:
            raise CaptureError(self._nothing(name))
        try:
            for seen, _ in own:
                check_unwritten(seen.versions)
        except CaptureError as reason:
            raise CaptureError(self._cannot_be_read(name, str(reason))) from None
        return tuple(reading for _, reading in own)

    def kinds(self, name: str) -> tuple[str, ...]:
        """Of each call, whether queries and keys are of the same tokens: ``self`` or ``cross``."""
        kinds = []
        for seen, reading in self._own(name):
            _, _, q, k = reading.attention.shape
            same = q == k if seen.same_source is None else seen.same_source
            kinds.append("self" if same else "cross")
        return tuple(kinds)

    def _own(self, name: str) -> list[tuple[Seen, Reading]]:
        """What a module computed, read; a softmax on the side of the one that is used is left out.

        Raises:
            CaptureError: it is an attention, and cannot be read.
        """
        own = [(i, seen) for i, (owner, seen) in enumerate(self.seen) if owner == name]
        refused = next((seen.refused for _, seen in own if seen.refused), "")
        if refused:
            raise CaptureError(self._cannot_be_read(name, refused))
        read_ = [(seen, self._reading(i, name, seen)) for i, seen in own]
        found = [(seen, reading) for seen, reading in read_ if reading is not None]
        used = [
            seen.product
            for seen, reading in found
            if isinstance(seen, Sighting) and reading.attention.value is not None
        ]
        return [
            (seen, reading)
            for seen, reading in found
            if isinstance(seen, FusedCall)
            or reading.attention.value is not None
            or not _among(seen.product, used)
        ]

    def _reading(self, i: int, name: str, seen: Seen) -> Reading | None:
        if i not in self._read:
            try:
                if isinstance(seen, Sighting):
                    self._read[i] = read(seen, self.examples)
                else:
                    self._read[i] = read_call(seen, self.examples)
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
        """Modules that show something of an attention which cannot be read, and why."""
        found = {}
        for name in dict.fromkeys(owner for owner, _ in self.seen):
            try:
                self._own(name)
            except CaptureError as reason:
                found[name] = str(reason)
        return found

    def unseen(self, modules: Mapping[str, nn.Module]) -> Mapping[str, str]:
        """Modules that ran, look like attention and show none that is followed, and why."""
        owners = {name for name, _ in self.seen if name in self.unread or self._own(name)}
        notices = dict(self.notices)
        found = {}
        for name in dict.fromkeys(self.ran):
            looks = looks_like_attention(modules[name]) or name in self.blind
            if looks and not any(_related(one, owners) for one in _whole_of(name, modules)):
                found[name] = notices.get(
                    name, "no softmax of a product of queries and keys was seen in it"
                )
        return found

    def check(self, compiled: Iterable[str] = ()) -> None:
        """Refuse a capture in which a chosen module never recorded anything.

        Args:
            compiled: the modules that run compiled, with everything in them.
        """
        self.keep_score()
        compiled = list(compiled)
        stale = [name for name in compiled if not self._ran_in(name)]
        if stale and any(_is_in(chosen, name) for chosen in self._classes for name in stale):
            raise CaptureError(
                f"module {stale[0]!r} was compiled before it was captured, and compiled code does "
                "not notice hooks that come later; open the capture before the first compiled "
                "call, or call torch.compiler.reset() first"
            )
        if self._strict:
            for reason in self.unread.values():
                raise CaptureError(reason)
        if not self._ever and not self._outputs and not self._returned:
            reasons = [self._nothing(name) for name, _ in self.notices]
            raise CaptureError(
                next(iter([*self.unread.values(), *reasons]), "")
                or "nothing was recorded: the model that was given to capture did not run inside "
                "the `with` block, or no chosen module computes a softmax of query @ key^T in "
                f"Python (chosen: {_some(self._classes)})"
                + ("; compiled code does not notice a later capture" if compiled else "")
            )
        missing = [name for name in self._classes if name not in self._ever]
        if self._strict and missing:
            raise CaptureError(self._nothing(missing[0]))

    def _ran_in(self, compiled: str) -> bool:
        """Whether anything in a compiled module called its hooks."""
        return not self._started or any(_is_in(name, compiled) for name in self._ran_ever)

    def warn(self, modules: Mapping[str, nn.Module]) -> None:
        """Where no pattern chose: name the attentions that are missing from the record."""
        if self._strict:
            return
        missing = {**self.unseen(modules), **self.unread}
        if missing:
            lines = [f"  {name or '(the model)'}: {reason}" for name, reason in missing.items()]
            warnings.warn(
                "\n".join(["the record lacks the attention of modules that look like it:", *lines]),
                CaptureWarning,
                stacklevel=4,
            )

    def keep_score(self) -> None:
        """Remember who recorded something, before the next forward is started."""
        self._ran_ever |= set(self.ran)
        self._ever |= {
            name
            for i, (name, seen) in enumerate(self.seen)
            if _surely(seen) or self._reading(i, name, seen) is not None
        }

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


def _surely(seen: Seen) -> bool:
    """Whether it is an attention, whatever reading it may show."""
    return isinstance(seen, FusedCall) or not seen.product.doubtful


def _among(product: Product, products: Iterable[Product]) -> bool:
    nodes = [(one.left_node, one.right_node) for one in products]
    return any(product.left_node is left and product.right_node is right for left, right in nodes)


def looks_like_attention(module: nn.Module) -> bool:
    """By its class's name, or by its projections of queries, keys and values."""
    if re.search(r"attention|attn", type(module).__name__, re.IGNORECASE):
        return True
    linear = {n: child for n, child in module.named_children() if isinstance(child, nn.Linear)}
    if any(child.out_features == 3 * child.in_features for child in linear.values()):
        return len(linear) >= 2
    return {"q", "k", "v"} <= {name[0].lower() for name in linear}


def _is_in(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")


def _whole_of(name: str, modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """The module, and those around it that look like the attention which it is a part of."""
    yield name
    while name:
        name = name.rpartition(".")[0]
        if name in modules and looks_like_attention(modules[name]):
            yield name


def _related(name: str, owners: Iterable[str]) -> bool:
    """Whether the module is inside of one that was read, or one that was read is inside of it."""
    inside = any(owner and f"{name}.".startswith(f"{owner}.") for owner in owners)
    return inside or any(
        owner == name or owner.startswith(f"{name}.") or not name for owner in owners
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
