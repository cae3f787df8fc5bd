"""An adapter that is data: what a TOML file says of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._capture.record import Record
from .._capture.wrappers import Accepted, accepted_arguments, unwrapped
from ..errors import SignalError, did_you_mean
from .adapter_file import checked_tables, read_adapter_file
from .directions import build_signals, first_tensor, layer_sources, output_tensor
from .layout import TokenLayout
from .run_entries import entry, is_none
from .runs import stream_tokens
from .signals import Signal, Signals
from .stacked_calls import count_calls, pairs_of_calls, repeat_tokens

_MODULE = "module:"


class DeclarativeAdapter:
    """An adapter that is data: one TOML file for each model, and no Python.

    Args:
        streams: stream -> pattern of its attention modules: one ``joint``, or ``text`` and
            ``image`` for two towers, or ``text_to_image`` and ``image_to_text``.
        inputs: argument of the model's ``forward`` -> batch entry; absent: what forward names, and
            where it takes ``**kwargs`` the entries that ``tokens`` reads of words, masks, marks and
            images.
        logits: a field of the output, or ``"module:head"``, the module that returns them.
        head: the output projection, a linear layer by its dotted name, for ``head.input`` and
            ``head.weight``; absent: what ``get_output_embeddings()`` of the model says.
        hidden: stream -> pattern of the modules that return its hidden states.
        embedding: modality -> a field of the output, or ``"module:..."``.
        pairs: modality -> batch entry that indexes it, where texts and images are encoded once.
        tokens: stream -> the runs of its tokens, in their order in the sequence.
        absent: signal that this backbone cannot have -> why; asking for it says so.
        predicts: ``"next"`` or ``"same"``: whether the logits at a position are of the token after
            it or of the one at it; absent: labels and input show it.
        match: of logits ``(p, 2)`` of a matching head, which class is the match.
        through: the modality of the joint stream's tokens through which words see the image, a
            resampler's: ``attention.text_to_image`` is composed with ``<through>_to_image``.

    Raises:
        SignalError: what is wrong, with its place; unknown keys say what was meant.
    """

    def __init__(self, **tables: Any) -> None:
        self._file = checked_tables(tables)
        self._accepted: Accepted | None = None

    @classmethod
    def from_toml(cls, path: str | Path | Traversable) -> DeclarativeAdapter:
        """Read an adapter file.

        Args:
            path: of the file; or the file inside a package, as ``importlib.resources`` finds it.

        Raises:
            UnknownNameError: there is no such file.
            SignalError: the file says something that no adapter file means; with the line.
        """
        made = cls.__new__(cls)
        made._file, made._accepted = read_adapter_file(path), None
        return made

    @property
    def tables(self) -> dict[str, Any]:
        """All that the file says, as plain data."""
        return self._file.model_dump()

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
    def through(self) -> str | None:
        """The modality of the tokens through which words see the image, as the file says."""
        return self._file.through

    @property
    def match(self) -> int | None:
        """Which of two classes of a matching head is the match, as the file says."""
        return self._file.match

    @property
    def predicts(self) -> str | None:
        """Which token the logits at a position are of, as the file says."""
        return self._file.predicts

    @property
    def head(self) -> str | None:
        """The name of the output projection, as the file says."""
        return self._file.head

    @property
    def unmasked(self) -> frozenset[str]:
        """The masks that the model is not called with, as the file says."""
        masks = (run.real_entry for run in self._file.runs if run.unmasked)
        return frozenset(name for name in masks if name)

    @property
    def entries(self) -> frozenset[str]:
        """The batch entries that the file names."""
        named = {*self._file.pairs.values(), *(self._file.inputs or {}).values()}
        return frozenset(named.union(*(run.entries for run in self._file.runs)))

    @property
    def masks(self) -> frozenset[str]:
        """The batch entries that say which tokens are real."""
        masks = (run.real_entry for run in self._file.runs)
        return frozenset(name for name in masks if name)

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
                if given[argument] is None and not is_none(batch, key):
                    entry(batch, key)  # says what is missing
            return {argument: value for argument, value in given.items() if value is not None}
        if self._accepted is None:
            return dict(batch)
        names = dict.fromkeys(self._accepted)
        if self._accepted.takes_any:
            named = frozenset[str]().union(*(run.arguments for run in self._file.runs))
            names |= dict.fromkeys(sorted(named - self.unmasked))
        return {name: batch[name] for name in names if name in batch}

    def layout(self, batch: Mapping[str, Any], record: Record) -> TokenLayout:
        pairs = {modality: entry(batch, key) for modality, key in self._file.pairs.items()}
        streams = {}
        for stream, runs in self._file.tokens.items():
            examples = partial(self._examples, stream, record)
            try:
                streams[stream] = stream_tokens(runs, batch, pairs, examples)
            except SignalError as error:
                raise SignalError(f"[[tokens.{stream}]] {error}") from None
        stacked = count_calls(record, self.streams)
        for stream, counts in stacked.items():
            if stream in streams:
                streams[stream] = repeat_tokens(streams[stream], *counts)
        return TokenLayout(streams, {**pairs_of_calls(stacked), **pairs})

    def _examples(self, stream: str, record: Record) -> int:
        """How many sequences a stream is of, from its attention."""
        for name, pattern in self.streams.items():
            if stream == name or stream in name.split("_to_"):
                return int(record.layers(pattern)[-1].shape[0])
        raise SignalError(
            f"no batch entry that [[tokens.{stream}]] names says how many examples there are: "
            "give one of its runs a `mask`"
        )

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
            through=self.through,
        )


def output_field(name: str, record: Record, output: Any) -> Tensor:
    """A field of a model's output, or what ``"module:head"`` returned."""
    if name.startswith(_MODULE):
        return output_tensor(record, name.removeprefix(_MODULE))
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
