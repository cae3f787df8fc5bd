"""What an adapter is, and how the one of a model is found."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from torch import nn

from .._capture.record import Record
from .._capture.wrappers import layers_of, unwrapped
from .._plugins.registry import lookup, owner_labels, provided
from .._plugins.specs import AdapterSpec, resolve, resource_file
from ..errors import PluginConflictError, UnknownNameError, did_you_mean
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
    - ``predicts``: ``"next"`` or ``"same"``: which token the logits at a position are of, for
      ``logits.response``; without it, labels and input show it.
    - ``head``: the dotted name of the output projection, for ``head.input`` and ``head.weight``;
      without it, or where it is None, what ``get_output_embeddings()`` of the model says.
    - ``examples(batch)``: signal -> how many examples it will have, where that is not the number of
      the batch's own: two images for each text, several texts for each image.
    - ``match``: 0 or 1: which class of logits ``(p, 2)`` is the match of a pair, for ``scores``.
    - ``through``: what it gives :func:`build_signals` under that name, for the adapter kit.
    - ``for_model(model)``: this adapter for another model of the family.
    """

    @property
    def streams(self) -> Mapping[str, str]:
        """Stream -> pattern of its attention modules; ``"x.*.att#1"`` is their second call.

        ``"x.*.att#*"`` is all calls as further examples, row ``i * calls + c``; ``layout`` then
        describes as many sequences.
        """

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
            or None to find it by the model's class. Of several that fit, the most specific wins:
            one that names the class, then one that names the nearest ancestor, then a pattern with
            wildcards; of patterns, the one that matches the most derived class, then the narrower.

    Raises:
        UnknownNameError: nothing fits; the message says the three ways in.
        PluginConflictError: several fit, none more specific than the others.
        SpecError: a registered adapter whose function or file is not there.
        TypeError: an object that is no adapter.
    """
    if isinstance(adapter, (str, Path)):
        if str(adapter).endswith(".toml"):
            adapter = DeclarativeAdapter.from_toml(adapter)
        else:
            adapter = _made(lookup(AdapterSpec, str(adapter)), unwrapped(model))
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


class _Match(NamedTuple):
    """An adapter that fits a model's class.

    Attributes:
        owner: the plugin that provides it.
        spec: what it provides.
        rank: how far the match is from naming the class itself: has it wildcards, and how many
            ancestors lie between; the lowest is the most specific.
    """

    owner: str
    spec: AdapterSpec
    rank: tuple[bool, int]


def _matching_adapter(model: nn.Module) -> Any:
    for layer in layers_of(model):  # a wrapper may be somebody's registered class itself
        matches = _matches(type(layer))
        if matches:
            return _made(_most_specific(type(layer), matches), layer)
    model_class = type(unwrapped(model))
    raise UnknownNameError(
        f"no adapter fits {_dotted(model_class)} "
        f"({did_you_mean(model_class.__name__, provided(AdapterSpec))}). Pass the path of an "
        'adapter file (student_adapter="model.toml", no Python needed), an adapter object, or '
        "install or dk.register one for its class"
    )


def _matches(model_class: type) -> list[_Match]:
    """Every registered adapter that fits a class, or an ancestor of it."""
    ancestors = list(map(_dotted, model_class.__mro__))
    found = []
    for by_owner in provided(AdapterSpec).values():
        for owner, spec in by_owner.items():
            distances = [i for i, one in enumerate(ancestors) if fnmatchcase(one, spec.matches)]
            if distances:
                is_pattern = any(wildcard in spec.matches for wildcard in "*?[")
                found.append(_Match(owner, spec, (is_pattern, distances[0])))
    return found


def _most_specific(model_class: type, matches: list[_Match]) -> AdapterSpec:
    lowest = min(match.rank for match in matches)
    best = [match for match in matches if match.rank == lowest]
    winners = [one for one in best if not any(_is_narrower(other, one) for other in best)]
    if len(winners) == 1:
        return winners[0].spec
    labels = owner_labels(dict.fromkeys(match.owner for match in winners))
    names = [f'"{labels[match.owner]}:{match.spec.name}"' for match in winners]
    listed = " and ".join(
        f"{name} of {labels[match.owner]} (matches {match.spec.matches!r})"
        for name, match in zip(names, winners, strict=True)
    )
    raise PluginConflictError(
        f"several adapters fit {_dotted(model_class)}, and none is more specific: {listed}. Say "
        f"which, student_adapter={names[0]} or teacher_adapter={names[0]}, or make `matches` of "
        "one of them name the class itself"
    )


def _is_narrower(one: _Match, other: _Match) -> bool:
    """Whether all that one pattern matches the other matches too, and not the other way round."""
    mine, theirs = one.spec.matches, other.spec.matches
    return fnmatchcase(mine, theirs) and not fnmatchcase(theirs, mine)


def _made(spec: AdapterSpec, model: nn.Module) -> Any:
    """The adapter that a spec describes, for a model."""
    if spec.factory is None:
        return DeclarativeAdapter.from_toml(resource_file(spec))
    return resolve(spec.factory)(model)


def _dotted(model_class: type) -> str:
    return f"{model_class.__module__}.{model_class.__qualname__}"
