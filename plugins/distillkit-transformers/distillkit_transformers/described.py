"""The adapter of a family that an adapter file describes; what differs by model is its config's."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

import distillkit as dk

from .derived import derived_entry
from .family import missing_field, output_value
from .from_config import filled
from .listing import adapter_tables
from .structure import config_of

_PLACES = {"text": "offset_mapping", "image": "image_boxes"}
_OPTIONAL = ("mask", "extents")  # a mask that is not there masks nothing
_FIELDS = ("logits", "embedding")


def __getattr__(name: str) -> Callable[[nn.Module], Described]:  # one factory for each family
    try:
        tables = adapter_tables(name)
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None

    def family(model: nn.Module) -> Described:
        return Described(tables, model)

    return family


class Described:
    """An adapter of distillkit that a file of ``families`` describes.

    Beyond what any adapter file says, ``"config.vision_config.patch_size"`` is a number of the
    model's configuration; masks, and where words and patches lie, are read where the batch has
    them; and what the output of a model has no field for is absent, with the reason.

    Args:
        tables: the adapter, as the file says it.
        model: the model whose configuration completes it.

    Raises:
        SignalError: the configuration has not what the file names.
    """

    def __init__(self, tables: Mapping[str, Any], model: nn.Module) -> None:
        self._of_family = tables
        self._arguments = dk.accepted_arguments(model)
        made = _placed(filled(tables, model))
        self._inputs: Mapping[str, str] = made.pop("inputs", {})
        self._derived: Mapping[str, str] = made.pop("derived", {})
        fields = {"logits": made.get("logits")}
        fields |= {f"embedding.{one}": f for one, f in made.get("embedding", {}).items()}
        self._fields = {name: field for name, field in fields.items() if field is not None}
        self._absent = made.get("absent", {})
        # which optional entries a batch has not, and whether it has one image for each example ->
        # the adapter of such batches
        self._made: dict[tuple[frozenset[str], bool], dk.DeclarativeAdapter] = {}
        self._tables = {key: value for key, value in made.items() if key not in _FIELDS}
        self._whole = dk.DeclarativeAdapter(**made)
        self._model = model

    @property
    def tables(self) -> dict[str, Any]:
        """All that the file says of this model, as plain data."""
        return self._whole.tables

    @property
    def match(self) -> int | None:
        return self._whole.match

    @property
    def predicts(self) -> str | None:
        return self._whole.predicts

    @property
    def streams(self) -> Mapping[str, str]:
        return self._whole.streams

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._whole.outputs

    @property
    def returns(self) -> tuple[str, ...]:
        return ()

    @property
    def sources(self) -> Mapping[str, tuple[str, ...]]:
        """The modules that the layers of every signal are made of."""
        return self._whole.sources

    @property
    def unmasked(self) -> frozenset[str]:
        """The masks that the model is not called with."""
        return self._whole.unmasked

    @property
    def entries(self) -> frozenset[str]:
        """The batch entries that inputs and layout may read."""
        return (
            self._whole.entries.union(self._arguments, self._inputs.values()) - self._derived.keys()
        )

    def for_model(self, model: nn.Module) -> Described:
        """This family's adapter for another model."""
        return Described(self._of_family, model)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        found = self._reading(batch).inputs(batch)
        named = {**{name: name for name in self._arguments}, **self._inputs}
        return {**found, **{name: batch[entry] for name, entry in named.items() if entry in batch}}

    def layout(self, batch: Mapping[str, Any], record: dk.Record) -> dk.TokenLayout:
        for entry in _PLACES.values():
            batch.get(entry)  # read also where it cannot be used, as it is no stray entry
        config = config_of(self._model)
        derived = {
            entry: derived_entry(what, batch, record, self.streams, config)
            for entry, what in self._derived.items()
        }
        seen = ChainMap(derived, batch) if derived else batch  # type: ignore[arg-type]
        return self._reading(seen).layout(seen, record)

    def signals(self, record: dk.Record, output: Any, layout: dk.TokenLayout) -> dk.Signals:
        values: dict[str, Any] = {}
        absent = dict(self._absent)
        for name, field in self._fields.items():
            value = output_value(output, field)
            if value is not None:
                values[name] = value
            else:
                absent.setdefault(name, missing_field(output, field))
        return dk.build_signals(
            record, self.streams, layout, values=values, absent=absent,
            hidden=self._tables.get("hidden"),
        )  # fmt: skip

    def _reading(self, batch: Mapping[str, Any]) -> dk.DeclarativeAdapter:
        """The adapter without the optional entries that this batch has not.

        Of one image in each example, places are boxes, as those of models that take no more.
        """
        runs = [run for stream in self._tables["tokens"].values() for run in stream]
        named = {run[key] for run in runs for key in _OPTIONAL if key in run}
        missing = frozenset(name for name in named if name not in batch)
        several = [run for run in runs if run.get("images") is True]
        one_each = bool(several) and all(_has_one_each(run, batch) for run in several)
        kind = missing, one_each
        if kind not in self._made:
            tokens = {
                stream: [_without(run, missing, one_each=one_each) for run in runs_of_stream]
                for stream, runs_of_stream in self._tables["tokens"].items()
            }
            made = dk.DeclarativeAdapter(**{**self._tables, "tokens": tokens})
            self._made[kind] = made.for_model(self._model)
        return self._made[kind]


def _has_one_each(run: Mapping[str, Any], batch: Mapping[str, Any]) -> bool:
    """Whether every example of the batch has one image, of a run that takes any number."""
    if run["where"] not in batch:
        return False
    marks = batch[run["where"]] == run["equals"]
    if isinstance(run.get("grid"), str):
        shapes = batch.get(run["grid"])
        images = 0 if shapes is None else shapes.numel() // shapes.shape[-1]
    else:
        pixels = batch.get("pixel_values")
        images = 0 if pixels is None else math.prod(pixels.shape[:-3])
    return images == len(marks) and bool(marks.any(1).all())


def _without(run: Mapping[str, Any], missing: frozenset[str], *, one_each: bool) -> dict[str, Any]:
    dropped = {"images"} if one_each else set()
    found = {
        key: value
        for key, value in run.items()
        if key not in dropped and (key not in _OPTIONAL or value not in missing)
    }
    if "mask" in run and "mask" not in found:
        found.pop("unmasked", None)
    return found


def _placed(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables with the entries that say where words and patches lie in the raw input."""
    tokens = {
        stream: [_placed_run(run) for run in runs] for stream, runs in tables["tokens"].items()
    }
    return {**tables, "tokens": tokens}


def _placed_run(run: dict[str, Any]) -> dict[str, Any]:
    said = {"extents", "box", "uncropped", "nowhere"} & run.keys()
    of_words = run["modality"] == "text" and "input_ids" in (run.get("length"), run.get("where"))
    of_patches = run["modality"] == "image" and {"grid", "patch"} & run.keys()
    if said or not (of_words or of_patches):
        return run
    return {**run, "extents": _PLACES[run["modality"]]}
