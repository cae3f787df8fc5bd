"""A registered adapter for a part of somebody's own model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .._capture.record import Record
from ..errors import CaptureError, did_you_mean
from .adapter import Adapter, adapter_for, unwrapped
from .declarative import accepted_arguments, entry, output_field
from .signals import Signals
from .tokens import TokenLayout


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
            looks for. Every other argument is taken from the entry of its name.

    Raises:
        CaptureError: no module of that name.
        UnknownNameError: no adapter fits the part.

    Examples:
        The logits of a head beside a CLIP, whose towers' attention is compared:

        .. code-block:: python

            adapter = dk.adapt(model, "clip", at="clip", logits="head")
            distiller = dk.Distiller(model, teacher, "dide", student_adapter=adapter)
    """
    whole = unwrapped(model)
    modules = dict(whole.named_modules())
    if at not in modules:
        raise CaptureError(
            f"{type(whole).__name__} has no module {at!r}; "
            f"{did_you_mean(at, filter(None, modules))}"
        )
    return _Part(whole, adapter_for(modules[at], adapter), at, logits, inputs)


class _Part:
    """The adapter of a part, whose modules' names start with the part's own."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        at: str,
        logits: str | None,
        inputs: Mapping[str, str] | None,
    ) -> None:
        self._adapter, self._at, self._inputs = adapter, at, dict(inputs or {})
        self._prefix = f"{at}." if at else ""
        self._arguments = accepted_arguments(model)
        self._logits = logits
        if logits is not None and logits in dict(model.named_modules()):
            self._logits = f"module:{logits}"

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

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        renamed = {n: entry(batch, key) for n, key in self._inputs.items() if n in self._arguments}
        return renamed | {n: batch[n] for n in self._arguments if n in batch and n not in renamed}

    def layout(self, batch: Mapping[str, Any], record: Record) -> TokenLayout:
        renamed = _Renamed(batch, self._inputs) if self._inputs else batch
        return self._adapter.layout(renamed, _at(record, self._prefix))

    def signals(self, record: Record, output: Any, layout: TokenLayout) -> Signals:
        inner = output
        if self._at:
            try:
                inner = record.output(self._at)
            except CaptureError:
                inner = None  # its towers were called one by one
        found = self._adapter.signals(_at(record, self._prefix), inner, layout)
        if self._logits is None:
            return found
        return found.with_values({"logits": output_field(self._logits, record, output)})


def _at(record: Record, prefix: str) -> Record:
    return _PrefixedRecord(record, prefix) if prefix else record  # type: ignore[return-value]


class _PrefixedRecord:
    """A record in which the names of a part are what its adapter calls them."""

    def __init__(self, record: Record, prefix: str) -> None:
        self._record, self._prefix = record, prefix

    def __getitem__(self, name: str) -> Any:
        return self._record[self._prefix + name]

    def __getattr__(self, method: str) -> Callable[[str], Any]:
        if method not in {"calls", "layers", "output", "outputs", "returned"}:
            raise AttributeError(method)
        called: Callable[[str], Any] = getattr(self._record, method)
        return lambda name: called(self._prefix + name)


class _Renamed(Mapping[str, Any]):
    """A batch by the names of a model's arguments."""

    def __init__(self, batch: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        self._batch, self._inputs = batch, inputs

    def __getitem__(self, name: str) -> Any:
        return self._batch[self._inputs.get(name, name)]

    def __contains__(self, name: object) -> bool:
        return self._inputs.get(str(name), name) in self._batch

    def __iter__(self) -> Any:
        return iter(dict.fromkeys([*self._inputs, *self._batch]))

    def __len__(self) -> int:
        return len(list(iter(self)))
