"""An adapter that is data: what a TOML file says of one model."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from .._capture.record import Record
from .._capture.wrappers import Accepted, accepted_arguments, unwrapped
from .._tables import Table, validated
from .._transfer import trackable
from ..errors import SignalError, UnknownNameError, did_you_mean
from .directions import build_signals, first_tensor, layer_sources, pair_examples
from .layout import ModalityTokens, StreamTokens, TokenLayout
from .signals import Signal, Signals
from .tokens import WHOLE, chosen, grid_extents, select_tokens

_MODULE = "module:"


class TokenRun(Table):
    """A run of one modality's tokens in a sequence, as an adapter file states it."""

    what = "a token run"

    modality: str
    length: str | int | None = Field(
        None, description="a number, or the batch entry whose second axis is the length"
    )
    mask: str | None = Field(None, description="the batch entry that is true for real tokens")
    unmasked: bool = Field(
        default=False, description="the model is called without this mask and attends to padding"
    )
    special: tuple[int, ...] = Field((), description="positions in the run without word or patch")
    grid: tuple[int, int] | None = Field(None, description="rows and columns of patches")
    where: str | None = Field(None, description="the batch entry that marks the tokens")
    equals: int | None = Field(None, description="its value at this modality's tokens")
    extents: str | None = Field(
        None,
        description="the batch entry that says where each token lies in the raw input: character "
        "offsets (b, m, 2), boxes (b, m, 4), or with `grid` what each image shows (b, 4)",
    )
    uncropped: bool = Field(default=False, description="the grid covers the whole image")

    @model_validator(mode="after")
    def _has_a_place(self) -> TokenRun:
        if (self.where is None) != (self.equals is None):
            raise ValueError("`where` and `equals` go together: where = entry, equals = its value")
        if self.length is None and self.grid is None and self.where is None:
            raise ValueError(
                f"the {self.modality} tokens have no place: give `length` (a number or a batch "
                "entry), `grid` (rows, columns) or `where` and `equals`"
            )
        if self.grid is not None and sorted(self.special) != list(range(len(self.special))):
            raise ValueError(
                f"special = {list(self.special)}: the special tokens of a grid stand before its "
                "patches, at 0, 1, ...; tokens elsewhere are a run of their own"
            )
        if self.unmasked and self.mask is None:
            raise ValueError("`unmasked` is about a `mask` that the model is not called with")
        if self.uncropped and (self.grid is None or self.extents is not None):
            raise ValueError("`uncropped` says that `grid` covers the whole image: it needs `grid`")
        return self


class _AdapterFile(Table):
    """The adapter file as a whole."""

    what = "an adapter"

    streams: dict[str, str]
    inputs: dict[str, str] | None = None
    logits: str | None = None
    hidden: dict[str, str] = Field(default_factory=dict)
    embedding: dict[str, str] = Field(default_factory=dict)
    pairs: dict[str, str] = Field(default_factory=dict)
    tokens: dict[str, tuple[TokenRun, ...]] = Field(default_factory=dict)
    absent: dict[str, str] = Field(default_factory=dict)


class DeclarativeAdapter:
    """An adapter that is data: one TOML file for each model, and no Python.

    Args:
        streams: stream -> pattern of its attention modules: one ``joint``, or ``text`` and
            ``image`` for two towers, or ``text_to_image`` and ``image_to_text``.
        inputs: argument of the model's ``forward`` -> batch entry; absent: what forward names, and
            where it takes ``**kwargs`` the masks and marked entries that ``tokens`` names.
        logits: a field of the output, or ``"module:head"``, the module that returns them.
        hidden: stream -> pattern of the modules that return its hidden states.
        embedding: modality -> a field of the output, or ``"module:..."``.
        pairs: modality -> batch entry that indexes it, where texts and images are encoded once.
        tokens: stream -> the runs of its tokens, in their order in the sequence.
        absent: signal that this backbone cannot have -> why; asking for it says so.

    Raises:
        SignalError: what is wrong, with its place; unknown keys say what was meant.
    """

    def __init__(self, **tables: Any) -> None:
        self._file = validated(_AdapterFile, tables, "adapter", SignalError)
        self._accepted: Accepted | None = None

    @classmethod
    def from_toml(cls, path: str | Path) -> DeclarativeAdapter:
        """Read an adapter file.

        Raises:
            SignalError: the file says something that no adapter file means.
        """
        path = Path(path)
        if not path.is_file():
            raise UnknownNameError(f"there is no adapter file {str(path)!r}")
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise SignalError(f"adapter file {str(path)!r} is no TOML: {error}") from None
        made = cls.__new__(cls)
        made._file = validated(_AdapterFile, table, f"adapter file {str(path)!r}", SignalError)
        made._accepted = None
        return made

    @property
    def tables(self) -> dict[str, Any]:
        """All that the file says, as plain data."""
        return self._file.model_dump(mode="json")

    @property
    def streams(self) -> Mapping[str, str]:
        return self._file.streams

    @property
    def returns(self) -> tuple[str, ...]:
        return ()

    @property
    def outputs(self) -> tuple[str, ...]:
        named = (self._file.logits, *self._file.embedding.values())
        heads = [n.removeprefix(_MODULE) for n in named if n and n.startswith(_MODULE)]
        return (*heads, *self._file.hidden.values())

    @property
    def sources(self) -> Mapping[str, tuple[str, ...]]:
        """The modules that the layers of every signal are made of."""
        return layer_sources(self._file.streams, self._file.hidden)

    @property
    def unmasked(self) -> frozenset[str]:
        """The masks that the model is not called with, as the file says."""
        return frozenset(run.mask for run in self._runs() if run.mask and run.unmasked)

    @property
    def entries(self) -> frozenset[str]:
        """The batch entries that the file names."""
        named: list[object] = [*self._file.pairs.values(), *(self._file.inputs or {}).values()]
        for run in self._runs():
            named += [run.length, run.mask, run.where, run.extents]
        return frozenset(name for name in named if isinstance(name, str))

    @property
    def masks(self) -> frozenset[str]:
        """The batch entries that say which tokens are real."""
        return frozenset(run.mask for run in self._runs() if run.mask)

    def _runs(self) -> list[TokenRun]:
        return [run for runs in self._file.tokens.values() for run in runs]

    def for_model(self, model: nn.Module) -> DeclarativeAdapter:
        """This adapter, knowing the names of the model's forward.

        Raises:
            SignalError: `inputs` names an argument that the model's forward does not take.
        """
        made = DeclarativeAdapter.__new__(DeclarativeAdapter)
        made._file, made._accepted = self._file, accepted_arguments(model)
        check_accepted(self._file.inputs or {}, made._accepted, model)
        return made

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self._file.inputs is not None:
            given = {argument: batch.get(key) for argument, key in self._file.inputs.items()}
            for argument, key in self._file.inputs.items():
                if given[argument] is None and not _is_none(batch, key):
                    entry(batch, key)  # says what is missing
            return {argument: value for argument, value in given.items() if value is not None}
        if self._accepted is None:
            return dict(batch)
        names = dict.fromkeys(self._accepted)
        if self._accepted.takes_any:
            named = {run.where for run in self._runs()} | (self.masks - self.unmasked)
            names |= dict.fromkeys(sorted(name for name in named if name))
        return {name: batch[name] for name in names if name in batch}

    def layout(self, batch: Mapping[str, Any], record: Record) -> TokenLayout:  # noqa: ARG002
        pairs = {modality: entry(batch, key) for modality, key in self._file.pairs.items()}
        streams = {s: _stream_tokens(runs, batch, pairs) for s, runs in self._file.tokens.items()}
        return TokenLayout(streams, pairs)

    def signals(self, record: Record, output: Any, layout: TokenLayout) -> Signals:
        values: dict[str, Signal | Callable[[], Signal]] = {}
        if self._file.logits is not None:
            values["logits"] = output_field(self._file.logits, record, output)
        for modality, name in self._file.embedding.items():
            values[f"embedding.{modality}"] = output_field(name, record, output)
        return build_signals(
            record,
            self.streams,
            layout,
            values=values,
            hidden=self._file.hidden,
            absent=self._file.absent,
        )


def _stream_tokens(
    runs: Sequence[TokenRun], batch: Mapping[str, Any], pairs: Mapping[str, Tensor]
) -> StreamTokens:
    """The runs of one stream, laid one after another."""
    joint = len({run.modality for run in runs}) > 1  # then every pair has its own sequence
    index = pairs if joint else {}
    marked = {
        run.modality: pair_examples(
            entry(batch, str(run.where)) == run.equals, index.get(run.modality)
        )
        for run in runs
        if run.where is not None
    }
    masks = [_run_mask(run, batch, index.get(run.modality)) for run in runs]
    if marked:
        others = ~torch.stack(list(marked.values())).any(0)
        modalities = {
            run.modality: _modality_tokens(
                run, batch, marked.get(run.modality, others), index.get(run.modality)
            )
            for run in runs
        }
        given = [mask for mask in masks if mask is not None]
        return StreamTokens(modalities, torch.stack(given).all(0) if given else None)
    modalities, start = {}, 0
    for run in runs:
        stop = start + _run_length(run, batch)
        place = slice(start, stop)
        modalities[run.modality] = _modality_tokens(run, batch, place, index.get(run.modality))
        start = stop
    return StreamTokens(modalities, _join_masks(masks, list(modalities.values())))


def _modality_tokens(
    run: TokenRun, batch: Mapping[str, Any], positions: slice | Tensor, index: Tensor | None
) -> ModalityTokens:
    """One run's tokens, with what is known of them."""

    def known(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        x = chosen(x, index)
        of_all = isinstance(positions, Tensor) and x.shape[1] == positions.shape[1]
        return select_tokens(x, positions) if of_all else x  # type: ignore[arg-type]

    extents, ids = known(_run_extents(run, batch)), known(_run_ids(run, batch))
    return ModalityTokens(positions, run.special, run.grid, extents, ids)


def _run_extents(run: TokenRun, batch: Mapping[str, Any]) -> Tensor | None:
    special = len(run.special)
    if run.uncropped and run.grid is not None:
        return grid_extents(run.grid, WHOLE, special=special)  # one entry stands for all
    if run.extents is None:
        return None
    given: Tensor = entry(batch, run.extents)
    if given.ndim == 2 and run.grid is not None:
        return grid_extents(run.grid, given, special=special)
    return given


def _run_ids(run: TokenRun, batch: Mapping[str, Any]) -> Tensor | None:
    """The vocabulary entries, where the run's length is that of a tensor of them."""
    if run.where is not None or run.modality != "text" or run.length == run.mask:
        return None
    ids = entry(batch, run.length) if isinstance(run.length, str) else None
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return None
    return None if ids.is_floating_point() or ids.dtype == torch.bool else ids


def _run_mask(run: TokenRun, batch: Mapping[str, Any], index: Tensor | None) -> Tensor | None:
    if run.mask is None or (batch.get(run.mask) is None and _is_none(batch, run.mask)):
        return None
    real: Tensor = entry(batch, run.mask)
    return pair_examples(trackable(real) if real.dtype == torch.bool else real != 0, index)


def _run_length(run: TokenRun, batch: Mapping[str, Any]) -> int:
    if run.grid is not None:
        return run.grid[0] * run.grid[1] + len(run.special)
    if isinstance(run.length, int):
        return run.length
    size: int = entry(batch, str(run.length)).shape[1]
    return size


def _join_masks(masks: Sequence[Tensor | None], tokens: Sequence[ModalityTokens]) -> Tensor | None:
    """One mask over the sequence; a run without a mask has no padding."""
    given = next((mask for mask in masks if mask is not None), None)
    if given is None or len(masks) == 1:
        return given
    parts = []
    for mask, one in zip(masks, tokens, strict=True):
        length = one.positions.stop - one.positions.start  # type: ignore[union-attr]
        parts.append(given.new_ones(len(given), length) if mask is None else mask)
    return torch.cat(parts, dim=1)


def output_field(name: str, record: Record, output: Any) -> Tensor:
    """A field of a model's output, or what ``"module:head"`` returned."""
    if name.startswith(_MODULE):
        return first_tensor(record.output(name.removeprefix(_MODULE)))
    if isinstance(output, Mapping):
        fields = {str(key): value for key, value in output.items()}
    else:
        names = getattr(output, "_fields", None) or getattr(output, "__dict__", {})
        fields = {field: getattr(output, field) for field in names}
    if name not in fields:
        raise SignalError(
            f"the output of the model ({type(output).__name__}) has no field {name!r}; "
            f'{did_you_mean(name, fields)}; "module:<name>" takes what a module returned'
        )
    return first_tensor(fields[name])


def check_accepted(names: Iterable[str], accepted: Accepted, model: nn.Module) -> None:
    """Refuse arguments that a model's forward does not take.

    Raises:
        SignalError: the first of them, with the nearest that it takes.
    """
    unknown = [name for name in names if name not in accepted]
    if unknown and not accepted.takes_any:
        raise SignalError(
            f"`inputs` names the argument {unknown[0]!r}, which the forward of "
            f"{type(unwrapped(model)).__name__} does not take; {did_you_mean(unknown[0], accepted)}"
        )


def _is_none(batch: Mapping[str, Any], key: str) -> bool:
    """Whether an entry is there and says by None that it is absent."""
    says_none = getattr(batch, "says_none", None)
    if says_none is not None:
        return bool(says_none(key))
    return key in batch and batch[key] is None


def entry(batch: Mapping[str, Any], key: str) -> Any:
    """An entry of the batch, or an error that says which was meant."""
    value = batch.get(key)
    if value is None and key not in batch:
        raise SignalError(f"the batch has no entry {key!r}; {did_you_mean(key, batch)}")
    return value
