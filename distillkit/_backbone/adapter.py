"""What an adapter is, and how the one of a model is found."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn

from .._capture.record import Record
from .._capture.wrappers import layers_of, unwrapped
from .._plugins.registry import lookup, provided
from .._plugins.specs import AdapterSpec, resolve
from ..errors import UnknownNameError, did_you_mean
from .declarative import DeclarativeAdapter
from .layout import TokenLayout
from .signals import Signals


@runtime_checkable
class Adapter(Protocol):
    """One backbone family; an object of any class that has these.

    It may have more, which is asked for where it is there:

    - ``sources``: signal with layers -> the patterns of the modules that its layers are made of, as
      :func:`layer_sources` names them. Then only the layers that are compared are recorded, and the
      last of every stream, which ``layout`` may ask for its shape; without it, all are.
    - ``unmasked``: names of masks that ``layout`` reads and the model is not called with, since it
      attends to padding. Any other mask that does not reach the model is an error.
    - ``entries``: names of the batch entries that ``inputs`` and ``layout`` read, for loops that
      drop columns which nobody names.
    - ``for_model(model)``: this adapter for another model of the family.
    """

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
        """The signals of the forward."""


def adapter_for(model: nn.Module, adapter: Adapter | str | Path | None = None) -> Adapter:
    """The adapter of a model: the one given, named or filed, or the one that fits its class.

    Args:
        model: any backbone; wrappers (DDP, FSDP, compile, PEFT, averaging, any module that only
            passes ``*args, **kwargs`` on) are looked through.
        adapter: an object with the adapter's methods, a registered name, the path of a TOML file,
            or None to find it by the model's class (the most derived match wins).

    Raises:
        UnknownNameError: nothing fits; the message says the three ways in.
        TypeError: an object that is no adapter.
    """
    if isinstance(adapter, (str, Path)):
        if str(adapter).endswith(".toml"):
            adapter = DeclarativeAdapter.from_toml(adapter)
        else:
            adapter = resolve(lookup(AdapterSpec, str(adapter)).factory)(unwrapped(model))
    elif adapter is None:
        adapter = _matching_adapter(model)
    for_model = getattr(adapter, "for_model", None)
    if for_model is not None:
        adapter = for_model(model)
    # not isinstance: from Python 3.12 on, it does not see what an adapter's __getattr__ forwards
    members = ("streams", "outputs", "returns", "inputs", "layout", "signals")
    missing = [member for member in members if not hasattr(adapter, member)]
    if missing:
        raise TypeError(
            f"an adapter has {', '.join(f'`{one}`' for one in members)}; "
            f"{type(adapter).__name__} lacks {', '.join(f'`{one}`' for one in missing)}"
        )
    return cast("Adapter", adapter)


def _matching_adapter(model: nn.Module) -> Any:
    known = provided(AdapterSpec)
    for layer in layers_of(model):  # a wrapper may be somebody's registered class itself
        for ancestor in type(layer).__mro__:
            dotted = f"{ancestor.__module__}.{ancestor.__qualname__}"
            for name, by_plugin in known.items():
                if any(fnmatchcase(dotted, spec.matches) for spec in by_plugin.values()):
                    return resolve(lookup(AdapterSpec, name).factory)(layer)
    model_class = type(unwrapped(model))
    raise UnknownNameError(
        f"no adapter fits {model_class.__module__}.{model_class.__qualname__} "
        f"({did_you_mean(model_class.__name__, known)}). Pass the path of an adapter file "
        '(student_adapter="model.toml", no Python needed), an adapter object, or install or '
        "dk.register one for its class"
    )
