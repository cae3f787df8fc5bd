"""What a capture holds: the attentions and outputs of the model's last forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor

from .._attention import Attention
from .._torch_private import is_functorch_wrapped_tensor, leaves_of
from ..errors import CaptureError, unknown_name
from ._read.reading import Reading, check_unwritten
from ._watch.follower import TRANSFORMED
from ._watch.history import Node, is_same_but_turned
from ._watch.sighting import FusedCall, Weighing
from .names import pattern_regex
from .recorder import Recorder, Seen
from .stacked import EVERY_CALL, split_call, stack_attentions


class Record(Mapping[str, Attention]):
    """The attention of each chosen module in the model's last forward, by module name.

    A record is read, never written: what the model does while it runs is only noted, and worked
    out when somebody asks. It iterates over the names of the chosen modules; where no pattern
    chose, over those whose attention is read.

    Examples:
        >>> import torch, distillkit as dk
        >>> layer = torch.nn.Module()
        >>> layer.forward = lambda x: (x @ x.mT).softmax(-1) @ x
        >>> model = torch.nn.Sequential(layer)
        >>> with dk.capture(model, "0") as record:
        ...     _ = model(torch.zeros(1, 2, 3, 4))
        >>> record, list(record), record["0"].shape
        (Record('0'), ['0'], (1, 2, 3, 3))
    """

    __slots__ = ("_prefix", "_recorder")

    _prefix: str
    _recorder: Recorder

    def __init__(self, recorder: Recorder, part: str = "") -> None:
        object.__setattr__(self, "_recorder", recorder)
        object.__setattr__(self, "_prefix", f"{part}." if part else "")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a record is read, not written; it has no attribute {name!r} to set")

    @property
    def names(self) -> tuple[str, ...]:
        """The chosen modules; where no pattern chose, those whose attention is read."""
        recorder = self._recorder
        if recorder.chosen.strict:
            return self._within(recorder.chosen.classes)
        owners = dict.fromkeys(name for name, _ in recorder.seen)
        unread = self.unread
        read = {name for name in owners if name not in unread and self._own(name)}
        return self._within(name for name in recorder.chosen.classes if name in read)

    def of_part(self, part: str) -> Record:
        """The same record by the names of a part of the model, without ``"<part>."``."""
        return Record(self._recorder, f"{self._prefix}{part}") if part else self

    def _within(self, names: Iterable[str]) -> tuple[str, ...]:
        prefix = self._prefix
        return tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))

    def _whole(self, name: str) -> str:
        """The plain name in the whole model."""
        name = f"{self._prefix}{name}"
        return self._recorder.chosen.plain.get(name, name)

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
                f'"{name}#1" (the second), or all as examples, "{name}#*"'
            )
        return calls[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def get(self, name: str, default: Any = None) -> Any:
        """The attention of a module; ``default`` where no such module was chosen."""
        if name not in self:
            return default
        return self[name]

    def __repr__(self) -> str:
        recorder = self._recorder
        counts: dict[str, int] = {}
        for name, _ in recorder.seen:
            counts[name] = counts.get(name, 0) + 1
        held = [f"{n!r}: {c} seen" if c > 1 else repr(n) for n, c in counts.items()]
        shown = _listed(held) if held else "no attention"
        for what, found in (("outputs", recorder.outputs), ("returned", recorder.returned)):
            if found:
                shown += f"; {what} of {_listed([repr(name) for name in found])}"
        return f"Record({shown})"

    def __reduce__(self) -> NoReturn:
        raise CaptureError(
            "a record holds what one forward left in this process, graph and all; keep what you "
            "need of it: an Attention or Signals can be copied and pickled"
        )

    def calls(self, name: str) -> tuple[Attention, ...]:
        """Every attention that the module computed in the last forward, in order."""
        return tuple(reading.attention for reading in self.readings(name))

    def layers(self, pattern: str) -> RecordedLayers:
        """The attentions of the modules that match, bottom to top; ``"x.*.att#1"``: 2nd calls.

        ``"x.*.att#*"`` stacks all calls of a module as examples: row ``i * calls + c`` is call c
        of example i, and calls of fewer tokens are padded at the end. Each layer is read when it is
        asked for, so that ``layers(pattern)[-1].shape`` reads one.
        """
        chosen, call = split_call(pattern)
        return RecordedLayers(self, self._matching(chosen, of_outputs=False), call)

    def outputs(self, pattern: str) -> tuple[Any, ...]:
        """The outputs of the modules that match, bottom to top."""
        call = "".join(pattern.partition("#")[1:])
        return tuple(self.output(f"{name}{call}") for name in self.output_names(pattern))

    def output_names(self, pattern: str) -> tuple[str, ...]:
        """The modules named in ``outputs=`` that a pattern matches, bottom to top."""
        return self._matching(split_call(pattern)[0], of_outputs=True)

    def _matching(self, pattern: str, *, of_outputs: bool) -> tuple[str, ...]:
        """The chosen names that a pattern matches, also by what wrappers make of them."""
        known = self._recorder.chosen.matched
        pattern = f"{self._prefix}{pattern}"
        found = known.get((pattern, of_outputs))
        if found is None:
            chosen = self._recorder.chosen
            names = chosen.outputs if of_outputs else chosen.classes
            found = known[pattern, of_outputs] = self._matched(pattern, names)
        return self._within(found) if self._prefix else found

    def _matched(self, pattern: str, names: Iterable[str]) -> tuple[str, ...]:
        regex = pattern_regex(pattern)
        names = list(names)
        found = [name for name in names if regex.fullmatch(name)]
        if not found:
            plain = self._recorder.chosen.plain
            wrapped = {name for path, name in plain.items() if regex.fullmatch(path)}
            found = [name for name in names if name in wrapped]
        return tuple(found)

    def output(self, name: str) -> Any:
        """The output of a module named in ``outputs=``, of its last call.

        Where it is named there as ``"layer.*#*"``, ``record.output("layer.0#*")`` is the tuple of
        the outputs of all its calls, in order, and ``"layer.0#1"`` that of the second.
        """
        recorder = self._recorder
        name, call = split_call(name)
        name = self._whole(name)
        found = _recorded("output", name, recorder.outputs, recorder.chosen.outputs)
        return _of_call("output", name, call, found, every=name in recorder.chosen.every)

    def returned(self, name: str) -> Any:
        """The return value of a bound method named in ``returns=``, of its last call.

        ``"#*"`` and ``"#1"`` at the end of a name choose calls, as of :meth:`output`.
        """
        recorder = self._recorder
        name, call = split_call(name)
        name = f"{self._prefix}{name}"
        found = _recorded("returned value", name, recorder.returned, recorder.chosen.returns)
        return _of_call("returned value", name, call, found, every=name in recorder.chosen.every)

    def readings(self, name: str) -> tuple[Reading, ...]:
        """The attentions of a module, each with what the model made of it where that was kept."""
        recorder, given, name = self._recorder, name, self._whole(name)
        if name not in recorder.chosen.classes:
            raise unknown_name("captured module", given, self.names)
        own = self._own(name)
        if not own:
            raise CaptureError(self._nothing(name))
        try:
            for seen, _ in own:
                check_unwritten(seen.versions)
        except CaptureError as reason:
            raise CaptureError(recorder.cannot_be_read(name, str(reason))) from None
        return tuple(reading for _, reading in own)

    def kinds(self, name: str) -> tuple[str, ...]:
        """Of each call, whether queries and keys are of the same tokens: ``self`` or ``cross``."""
        kinds = []
        for seen, reading in self._own(self._whole(name)):
            _, _, q, k = reading.attention.shape
            same = q == k if seen.same_source is None else seen.same_source
            kinds.append("self" if same else "cross")
        return tuple(kinds)

    @property
    def unread(self) -> Mapping[str, str]:
        """Modules that show something of an attention which cannot be read, and why."""
        found = {}
        for name in dict.fromkeys(owner for owner, _ in self._recorder.seen):
            try:
                self._own(name)
            except CaptureError as reason:
                found[name] = str(reason)
        return found

    def _own(self, name: str) -> list[tuple[Seen, Reading]]:
        """The attentions of a module, read; a softmax beside the one that is used is left out.

        Raises:
            CaptureError: it is an attention, and cannot be read.
        """
        recorder = self._recorder
        own = [(i, seen) for i, (owner, seen) in enumerate(recorder.seen) if owner == name]
        refused = next((seen.refused for _, seen in own if seen.refused), "")
        if refused:
            raise CaptureError(recorder.cannot_be_read(name, refused))
        read = [(seen, recorder.reading(i)) for i, seen in own]
        found = [(seen, reading) for seen, reading in read if reading is not None]
        used = [_pair(seen) for seen, reading in found if reading.attention.value is not None]
        return [
            (seen, reading)
            for seen, reading in found
            if reading.attention.value is not None or not _is_one_of(_pair(seen), used)
        ]

    def _nothing(self, name: str) -> str:
        recorder = self._recorder
        if recorder.held is not None and name not in recorder.held:
            return (
                f"the attention of module {name!r} was not kept: no term compares this layer; "
                "Backbone(model, adapter).signals(batch) keeps every layer"
            )
        return nothing_of(name, recorder)


class RecordedLayers(Sequence[Attention]):
    """The attentions of some modules, bottom to top, each read when it is asked for.

    Args:
        record: where they are read.
        names: the modules.
        call: which call of each, as :func:`split_call` has it.
    """

    def __init__(self, record: Record, names: Sequence[str], call: str) -> None:
        self._record, self._names, self._call = record, tuple(names), call

    @property
    def names(self) -> tuple[str, ...]:
        """The modules, bottom to top."""
        return self._names

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return RecordedLayers(self._record, self._names[index], self._call)
        name = self._names[index]
        if not self._call:
            return self._record[name]
        calls = self._record.calls(name)
        if self._call == EVERY_CALL:
            return stack_attentions(name, calls)
        if int(self._call) >= len(calls):
            raise CaptureError(
                f"'{name}#{self._call}' is call {self._call}, counted from 0, of a module that "
                f"computed {len(calls)} attentions in this forward"
            )
        return calls[int(self._call)]

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"RecordedLayers({_listed([repr(name) for name in self._names])})"


def nothing_of(name: str, recorder: Recorder) -> str:
    """The message about a chosen module without attention."""
    classes, prefix = recorder.chosen.classes, f"{name}." if name else ""
    inside = [one for one in classes if one in recorder.ever and one.startswith(prefix)]
    why = (
        "it did not run, or it computes no scaled_dot_product_attention and no softmax of "
        "query @ key^T of its own (is the attention in a child or parent module?)"
    )
    if inside:
        why = (
            f"an operation is recorded once, as that of the innermost chosen module, here of "
            f"{inside[0]!r}; choose one of the two"
        )
    why = dict(recorder.notices).get(name, why)
    cls = classes[name]
    return f"module {name!r} ({cls}) was chosen but recorded no attention: {why}"


def _recorded(what: str, name: str, found: Mapping[str, Any], wanted: Iterable[str]) -> Any:
    if name in found:
        tensors = [leaf for leaf in leaves_of(found[name]) if isinstance(leaf, Tensor)]
        if any(map(is_functorch_wrapped_tensor, tensors)):
            raise CaptureError(f"the {what} of {name!r} cannot be kept: {TRANSFORMED}")
        return found[name]
    if name not in wanted:
        raise unknown_name(f"captured {what}", name, wanted)
    raise CaptureError(
        f"the {what} of {name!r} was not recorded: it did not run in this forward, or no term "
        "compares it"
    )


def _of_call(what: str, name: str, call: str, found: Sequence[Any], *, every: bool) -> Any:
    """The last of what was kept of a module's calls, one of them, or all."""
    if not call:
        return found[-1]
    if not every:
        raise CaptureError(
            f"only the last {what} of {name!r} was kept: to have those of all its calls, name it "
            f"'{name}#*' where it is asked for (`outputs`, `returns`)"
        )
    if call == EVERY_CALL:
        return tuple(found)
    if int(call) >= len(found):
        raise CaptureError(
            f"'{name}#{call}' is call {call}, counted from 0, of {len(found)} in this forward"
        )
    return found[int(call)]


def _pair(seen: Seen) -> tuple[Node, ...]:
    """How queries and keys were made."""
    if isinstance(seen, FusedCall):
        return seen.pair
    product = seen if isinstance(seen, Weighing) else seen.product
    return product.left_node, product.right_node


def _is_one_of(pair: tuple[Node, ...], pairs: Iterable[tuple[Node, ...]]) -> bool:
    """Whether a map is of the same queries and keys as one that is used, written either way."""
    if not pair:
        return False
    return any(
        one and any(all(map(is_same_but_turned, pair, order)) for order in (one, one[::-1]))
        for one in pairs
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
