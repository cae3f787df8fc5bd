"""What an adapter is, and how the one of a model is found."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .._capture.record import Record
from .._plugins.registry import lookup, provided
from .._plugins.specs import AdapterSpec, resolve
from ..errors import UnknownNameError, did_you_mean
from .declarative import DeclarativeAdapter
from .signals import Signals
from .tokens import TokenLayout


@runtime_checkable
class Adapter(Protocol):
    """One backbone family; an object of any class that has these."""

    @property
    def streams(self) -> Mapping[str, str]:
        """Stream -> pattern of its attention modules; ``"x.*.att#1"`` is their second call."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Patterns of further modules whose output is wanted."""

    @property
    def returns(self) -> tuple[str, ...]:
        """Methods whose return value is wanted, ``"embeddings.visual_embed"``."""

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments that the model is called with."""

    def layout(self, batch: Mapping[str, Any], record: Record) -> TokenLayout:
        """Where the tokens of this forward sit."""

    def signals(self, record: Record, output: Any, layout: TokenLayout) -> Signals:
        """What the forward exposes."""


def adapter_for(model: nn.Module, adapter: Adapter | str | Path | None = None) -> Adapter:
    """The adapter of a model: the one given, named or filed, or the one that fits its class.

    Args:
        model: any backbone; DDP and compile wrappers are looked through.
        adapter: an object with the adapter's methods, a registered name, the path of a TOML file,
            or None to find it by the model's class (the most derived match wins).

    Raises:
        UnknownNameError: nothing fits; the message says the three ways in.
        TypeError: an object that is no adapter.
    """
    model = unwrapped(model)
    if isinstance(adapter, (str, Path)):
        if str(adapter).endswith(".toml"):
            adapter = DeclarativeAdapter.from_toml(adapter)
        else:
            adapter = resolve(lookup(AdapterSpec, str(adapter)).factory)(model)
    elif adapter is None:
        adapter = _matching_adapter(model)
    if isinstance(adapter, DeclarativeAdapter):
        return adapter.for_model(model)
    if not isinstance(adapter, Adapter):
        members = ("streams", "outputs", "returns", "inputs", "layout", "signals")
        missing = [member for member in members if not hasattr(adapter, member)]
        raise TypeError(
            f"an adapter has {', '.join(f'`{one}`' for one in members)}; "
            f"{type(adapter).__name__} lacks {', '.join(f'`{one}`' for one in missing)}"
        )
    return adapter


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, DataParallel and compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (DataParallel, DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _matching_adapter(model: nn.Module) -> Any:
    known = provided(AdapterSpec)
    for ancestor in type(model).__mro__:
        dotted = f"{ancestor.__module__}.{ancestor.__qualname__}"
        for name, by_plugin in known.items():
            if any(fnmatchcase(dotted, spec.matches) for spec in by_plugin.values()):
                return resolve(lookup(AdapterSpec, name).factory)(model)
    model_class = type(model)
    raise UnknownNameError(
        f"no adapter fits {model_class.__module__}.{model_class.__qualname__} "
        f"({did_you_mean(model_class.__name__, known)}). Pass the path of an adapter file "
        '(student_adapter="model.toml", no Python needed), an adapter object, or install or '
        "dk.register one for its class"
    )
