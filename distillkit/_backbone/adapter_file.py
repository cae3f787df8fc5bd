"""An adapter file: its tables, and what is wrong with it on which line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from .._tables import Table, validated
from .._toml_file import read_toml
from ..errors import SignalError, did_you_mean
from .token_run import TokenRun
from .toml_lines import line_of

_CALLED = re.compile(r"^\W?(?:no key of [\w ]+ is called )?[`'](\w+)[`']")


class AdapterFile(Table):
    """The adapter file as a whole."""

    what = "an adapter"

    streams: dict[str, str]
    inputs: dict[str, str] | None = None
    logits: str | None = None
    head: str | None = None
    hidden: dict[str, str] = Field(default_factory=dict)
    embedding: dict[str, str] = Field(default_factory=dict)
    pairs: dict[str, str] = Field(default_factory=dict)
    tokens: dict[str, tuple[TokenRun, ...]] = Field(default_factory=dict)
    absent: dict[str, str] = Field(default_factory=dict)
    predicts: Literal["next", "same"] | None = None
    match: Literal[0, 1] | None = None
    through: str | None = Field(
        None, description="the modality of the joint tokens through which words see the image"
    )

    @property
    def runs(self) -> tuple[TokenRun, ...]:
        """The runs of every stream."""
        return tuple(run for runs in self.tokens.values() for run in runs)

    @model_validator(mode="after")
    def _fits_together(self) -> AdapterFile:
        problem = next(_problems_of_through(self), None)
        if problem is not None:
            raise ValueError(f"`through` = {self.through!r}: {problem}")
        known = {"text", "image", "joint", *self.streams, *self.hidden}
        known |= {end for stream in self.streams for end in stream.split("_to_")}
        for stream, runs in self.tokens.items():
            if self.streams and stream not in known:
                raise ValueError(
                    f"[[tokens.{stream}]] is of no stream that `streams` names and no end of one; "
                    f"{did_you_mean(stream, known)}"
                )
            problem = next(_contradictions(runs), None)
            if problem is not None:
                raise ValueError(f"[[tokens.{stream}]] {problem}")
        return self


def _problems_of_through(file: AdapterFile) -> Iterator[str]:
    """What is missing for words that see the image through other tokens, or contradicts it."""
    latent = file.through
    if latent is None:
        return
    stream = f"{latent}_to_image"
    if latent in ("text", "image"):
        yield (
            "it names tokens that are neither text nor image, such as a resampler's: give their "
            'run in [[tokens.joint]] a modality of its own, modality = "latent"'
        )
    for needed in ("joint", stream):
        if needed not in file.streams:
            yield (
                f"it composes the streams 'joint' and {stream!r}, and `streams` has no {needed!r}; "
                f"{did_you_mean(needed, file.streams)}"
            )
    if "text_to_image" in file.streams:
        yield "it composes text_to_image, which `streams` names as well: give one of them"
    if "attention.text_to_image" in file.absent:
        yield "it composes attention.text_to_image, which `absent` says there is not"
    needed_runs = [("joint", "text"), ("joint", latent), (latent, latent), ("image", "image")]
    for of, modality in needed_runs:
        named = {run.modality for run in file.tokens.get(of, ())}
        if modality not in named:
            yield (
                f"it needs a [[tokens.{of}]] of modality {modality!r}; "
                f"{did_you_mean(modality, named)}"
            )
    if stream in file.tokens:
        yield (
            f"the tokens of {stream!r} are those of [[tokens.{latent}]] and [[tokens.image]]; "
            f"[[tokens.{stream}]] would say it twice"
        )


def hosts_of(runs: Sequence[TokenRun]) -> list[int | None]:
    """For each run with ``where``, the run whose tokens it marks some of; None: the sequence.

    Runs without ``where`` lie one after another. A marked run stands within the one whose length is
    that of the entry that marks it; where no run is unmarked, marks are of the whole sequence.

    Raises:
        ValueError: several runs could be meant.
    """
    unmarked = [i for i, run in enumerate(runs) if run.where is None]
    found: list[int | None] = []
    for i, run in enumerate(runs):
        if i in unmarked or not unmarked:
            found.append(None)
            continue
        named = [j for j in unmarked if run.where in (runs[j].length, runs[j].ids, runs[j].mask)]
        sized = [j for j in unmarked if isinstance(runs[j].length, str)]
        fitting = named or sized or unmarked
        if len(fitting) > 1:
            raise ValueError(
                f"`where` = {run.where!r}: it marks tokens of one of the runs that lie one after "
                f"another, and {len(fitting)} could be meant. Let the `length` of that one be "
                f"{run.where!r}, and of no other"
            )
        found.append(fitting[0])
    return found


def _contradictions(runs: Sequence[TokenRun]) -> Iterator[str]:
    """What the runs of one stream cannot mean together."""
    try:
        hosts_of(runs)
    except ValueError as error:
        yield str(error)
    marks: dict[tuple[str | None, int], tuple[int, ...]] = {}
    for run in runs:
        for value in run.equals or ():
            before = marks.setdefault((run.where, value), run.equals or ())
            if before != run.equals:
                yield (
                    f"`equals`: {run.where!r} is {value} at tokens of two runs, of which one says "
                    f"{list(before)} and the other {list(run.equals or ())}: one token, one run. "
                    "Runs that share the marked tokens say the same values"
                )
    shares: dict[tuple[str | None, Any], list[TokenRun]] = {}
    for run in runs:
        if run.where is not None:
            shares.setdefault((run.where, run.equals), []).append(run)
    for sharing in shares.values():
        open_ended = [run for run in sharing[:-1] if not _tells_count(run)]
        if open_ended:
            yield (
                f"`where` = {sharing[0].where!r}: {len(sharing)} runs share the marked tokens in "
                "their order, and only the last may leave open how many it takes: give the others "
                "a `grid` or a number as `length`"
            )
    yield from _unlike_runs(runs)


def _tells_count(run: TokenRun) -> bool:
    return (run.has_grid and run.images is not True) or isinstance(run.length, int)


def _unlike_runs(runs: Sequence[TokenRun]) -> Iterator[str]:
    """Runs of one modality of which one says something that the others leave out."""
    by_modality: dict[str, list[TokenRun]] = {}
    for run in runs:
        by_modality.setdefault(run.modality, []).append(run)
    for modality, same in by_modality.items():
        of_patches = [run for run in same if not _all_special(run)]
        if len({run.has_place for run in of_patches}) > 1:
            yield (
                f"the {modality} tokens are {len(same)} runs, of which only some say where they "
                "lie: give each `uncropped`, `box` or `extents`, or say `nowhere = true` of those "
                "that no place can be said of"
            )
        placed = [run for run in of_patches if run.has_place and not run.nowhere]
        if len({run.images is None and run.frames is None for run in placed}) > 1:
            yield (
                f"the {modality} tokens are {len(same)} runs, of which only some count `images` "
                "or `frames`: say it of each of them (images = 1 for one)"
            )


def _all_special(run: TokenRun) -> bool:
    return run.fixed_count is not None and len(run.special) == run.fixed_count


def checked_tables(tables: Mapping[str, Any]) -> AdapterFile:
    """The tables of a file that was written in Python.

    Raises:
        SignalError: what is wrong, with its place.
    """
    return validated(AdapterFile, tables, "adapter", SignalError)


def read_adapter_file(path: str | Path | Traversable) -> AdapterFile:
    """Read an adapter file.

    Raises:
        UnknownNameError: there is no such file.
        SignalError: the file says something that no adapter file means; with the line.
    """
    path = Path(path) if isinstance(path, str) else path
    text, tables = read_toml(path, "adapter file", SignalError)

    def line(place: Sequence[str | int], message: str) -> int:
        if (stream := re.match(r"\[\[tokens\.([\w-]+)\]\]", message)) is not None:
            return line_of(text, ("tokens", stream[1]))
        named = _CALLED.match(message)
        return line_of(text, place, [named[1]] if named else [])

    return validated(AdapterFile, tables, f"adapter file {str(path)!r}", SignalError, line)
