"""A registered adapter for a part of somebody's own model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .._capture.names import ModuleNames
from .._capture.record import Record
from .._capture.wrappers import accepted_arguments, unwrapped
from ..errors import CaptureError, SignalError, did_you_mean
from .adapter import Adapter, adapter_for
from .declarative import output_field
from .layout import TokenLayout
from .run_entries import entry
from .signals import Signals


def adapt(
    model: nn.Module,
    adapter: Adapter | str | Path | None = None,
    *,
    at: str = "",
    logits: str | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Adapter:
    """An adapter for a model of one's own that contains a backbone with an adapter.

    Args:
        model: the whole model, which is what the distiller calls.
        adapter: as in :func:`adapter_for`, for the part; None finds it by the part's class.
        at: dotted name of the part; ``""`` is the model itself.
        logits: the module of the model that returns the logits, or a field of its output.
        inputs: argument -> batch entry, where they are called differently: arguments of the
            model's own ``forward``, and those of the part (``input_ids``) that its token layout
            looks for. What ``forward`` takes as ``**kwargs`` is passed where it is named here or is
            an argument of the part. Every other argument is taken from the entry of its name.

    Raises:
        CaptureError: no module of that name.
        SignalError: an argument that neither the model nor the part takes.
        UnknownNameError: no adapter fits the part.

    Examples:
        The logits of a head beside a CLIP, whose towers' attention is compared:

        .. code-block:: python

            adapter = dk.adapt(model, "clip", at="clip", logits="head")
            distiller = dk.Distiller(model, teacher, "dide", student_adapter=adapter)
    """
    return _Part(model, adapter, at, logits, dict(inputs or {}))


class _Part:
    """The adapter of a part, whose modules' names start with the part's own."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter | str | Path | None,
        at: str,
        logits: str | None,
        inputs: Mapping[str, str],
    ) -> None:
        self._given = adapter, at, logits, inputs
        self._model = model
        names = ModuleNames(model)
        at = names.plain.get(at, at)
        if at not in names.modules:
            raise CaptureError(
                f"{type(unwrapped(model)).__name__} has no module {at!r}; "
                f"{did_you_mean(at, filter(None, names.modules))}"
            )
        part = names.modules[at] if at else model
        self._adapter, self._at, self._inputs = adapter_for(part, adapter), at, inputs
        self._prefix = f"{at}." if at else ""
        self._accepted = accepted_arguments(model)
        self._of_part = of_part = accepted_arguments(part)
        unknown = [name for name in inputs if name not in {*self._accepted, *of_part}]
        if unknown and not (self._accepted.takes_any or of_part.takes_any):
            raise SignalError(
                f"`inputs` names {unknown[0]!r}, which is no argument of "
                f"{type(unwrapped(model)).__name__} or of its part; "
                f"{did_you_mean(unknown[0], (*self._accepted, *of_part))}"
            )
        self._logits = logits
        if logits is not None and logits in names.modules:
            self._logits = f"module:{logits}"

    def for_model(self, model: nn.Module) -> _Part:
        """The same adapter for another model of the same build."""
        return self if model is self._model else _Part(model, *self._given)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Part, (self._model, *self._given)

    @property
    def streams(self) -> Mapping[str, str]:
        return {s: f"{self._prefix}{pattern}" for s, pattern in self._adapter.streams.items()}

    @property
    def outputs(self) -> tuple[str, ...]:
        of_part = [f"{self._prefix}{pattern}" for pattern in self._adapter.outputs]
        own = [self._at] if self._at else []
        if self._logits and self._logits.startswith("module:"):
            own.append(self._logits.removeprefix("module:"))
        return (*of_part, *own)

    @property
    def returns(self) -> tuple[str, ...]:
        return tuple(f"{self._prefix}{name}" for name in self._adapter.returns)

    @property
    def sources(self) -> Mapping[str, tuple[str, ...]] | None:
        """The modules that the layers of every signal are made of, where the part says so."""
        sources: Mapping[str, tuple[str, ...]] | None = getattr(self._adapter, "sources", None)
        if sources is None:
            return None
        return {
            signal: tuple(f"{self._prefix}{pattern}" for pattern in patterns)
            for signal, patterns in sources.items()
        }

    @property
    def through(self) -> str | None:
        """The modality of the tokens through which words see the image, as the part says."""
        through: str | None = getattr(self._adapter, "through", None)
        return through

    @property
    def unmasked(self) -> frozenset[str]:
        """The masks that the model is not called with, as the part says."""
        return self._entries("unmasked")

    @property
    def masks(self) -> frozenset[str]:
        """The batch entries that say which tokens are real, as the part says."""
        return self._entries("masks")

    @property
    def entries(self) -> frozenset[str]:
        """The batch entries that are read, as far as the part and ``inputs`` name them."""
        return self._entries("entries").union(self._inputs.values())

    def _entries(self, what: str) -> frozenset[str]:
        names: frozenset[str] = getattr(self._adapter, what, frozenset())
        return frozenset(self._inputs.get(name, name) for name in names)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        named = self._inputs
        passed = {
            name: entry(batch, named[name]) if name in named else batch[name]
            for name in self._accepted
            if name in named or name in batch
        }
        if not self._accepted.takes_any:
            return passed
        # **kwargs of the whole reach the part; what it gets under another name, it has already
        entries = {named.get(name, name) for name in passed}
        for name in (*named, *self._of_part):
            key = named.get(name, name)
            if name not in passed and key not in entries and (name in named or key in batch):
                passed[name] = entry(batch, key)
        return passed

    def layout(self, batch: Mapping[str, Any], record: Record) -> TokenLayout:
        renamed = _Renamed(batch, self._inputs) if self._inputs else batch
        return self._adapter.layout(renamed, record.of_part(self._at))

    def signals(self, record: Record, output: Any, layout: TokenLayout) -> Signals:
        inner = output
        if self._at:
            try:
                inner = record.output(self._at)
            except CaptureError:
                inner = None  # its towers were called one by one
        found = self._adapter.signals(record.of_part(self._at), inner, layout)
        if self._logits is None:
            return found
        return found.with_values({"logits": output_field(self._logits, record, output)})


class _Renamed(Mapping[str, Any]):
    """A batch by the names of a model's arguments."""

    def __init__(self, batch: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        self._batch, self._inputs = batch, inputs

    def __getitem__(self, name: str) -> Any:
        return self._batch[self._inputs.get(name, name)]

    def __contains__(self, name: object) -> bool:
        return self._inputs.get(str(name), name) in self._batch

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._inputs, *self._batch]))

    def __len__(self) -> int:
        return len(list(iter(self)))
