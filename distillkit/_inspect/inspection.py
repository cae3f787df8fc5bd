"""A whole adapter file of a model, from what moves when its inputs change, checked by the kit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._backbone.declarative import DeclarativeAdapter
from .._capture.undisturbed import in_eval_mode
from .._capture.wrappers import accepted_arguments
from ..errors import DistillKitError
from ..testing.adapters import check_adapter
from ..testing.results import CheckResult
from .entries import Entries, named_ids
from .facts import Facts, find_facts, image_tokens, sees
from .lines import AdapterText, Hint, Line, Table, comments
from .outputs import find_hidden, find_outputs
from .probe import Probe
from .runs import run_tables
from .streams import Streams, find_streams
from .towers import Watched


@dataclass(frozen=True)
class Inspection:
    """An adapter file, and what the kit says of it.

    Attributes:
        file: its lines.
        results: of the kit; nothing, where the file cannot be read yet.
        problem: why it cannot.
    """

    file: AdapterText
    results: tuple[CheckResult, ...] = ()
    problem: str = ""

    @property
    def missing(self) -> list[str]:
        """The lines that only an author can write."""
        return self.file.missing

    @property
    def failed(self) -> list[CheckResult]:
        return [result for result in self.results if result.failed]

    @property
    def passed(self) -> bool:
        """Whether nothing is missing and no check fails."""
        return not self.missing and not self.problem and not self.failed

    def __str__(self) -> str:
        """The file; its verdicts are comments at the end."""
        said = [f"not read: {self.problem}"] if self.problem else []
        said += [f"missing: {line}" for line in self.missing]
        said += [str(result) for result in self.results]
        verdict = "what the adapter kit says of this file (python -m distillkit inspect):"
        return f"{self.file}\n{comments([verdict, *said])}\n"


def inspect_model(model: nn.Module, batch: Mapping[str, Any]) -> Inspection:
    """Write the adapter file of a model, and let the kit check it.

    Args:
        model: any module.
        batch: what it is called with.

    Raises:
        CaptureError: no attention of it can be read.
    """
    watched = Watched(model, batch)
    entries = Entries(watched.batch, named_ids(model))
    if not watched.readable:
        raise DistillKitError(_unread(watched))
    streams = find_streams(watched, entries)
    file = _written(watched, streams.entries, streams)
    return _checked(file, model, batch)


def _unread(watched: Watched) -> str:
    if not watched.towers:
        return "no attention was found"
    return "no attention can be a stream: " + "; ".join(
        f"{tower}: {tower.problem}" for tower in watched.towers
    )


def _checked(file: AdapterText, model: nn.Module, batch: Mapping[str, Any]) -> Inspection:
    try:
        adapter = DeclarativeAdapter(**file.tables)
        if file.missing and not file.runs:
            return Inspection(file, problem="no stream is known")
        with in_eval_mode(model):
            results = check_adapter(lambda: (model, dict(batch), adapter))
    except DistillKitError as error:
        return Inspection(file, problem=" ".join(str(error).split()))
    return Inspection(file, tuple(results))


def _written(watched: Watched, entries: Entries, streams: Streams) -> AdapterText:
    file = AdapterText()
    sequences = _sequences(watched, entries, streams)
    file.top.lines = [
        *_inputs(watched, entries),
        *_streams(streams, entries),
        *_outputs(watched, entries, streams),
        *_absent(sequences.get("joint")),
        *(Hint(f"left out: {tower}", what) for tower, what in streams.left_out),
    ]
    for stream, facts in sequences.items():
        file.runs += run_tables(stream, facts)
    for stream in _ends_of(streams):
        if stream not in sequences:
            why = f"the tokens of {stream} are those of no sequence that was seen"
            file.runs.append(Table(lines=[Hint(f"[[tokens.{stream}]]", why, is_missing=True)]))
    return file


def _ends_of(streams: Streams) -> list[str]:
    """The sequences that the streams are of."""
    return list(dict.fromkeys(end for one in streams.chosen for end in one.split("_to_")))


def _sequences(watched: Watched, entries: Entries, streams: Streams) -> dict[str, Facts]:
    """Each sequence, seen where it is the keys of a stream if it can be: they show padding."""
    found: dict[str, Facts] = {}
    for stream, tower in streams.chosen.items():
        query, _, key = stream.partition("_to_")
        sides = [("queries", query), ("keys", key)] if key else [("queries", query)]
        for side, name in sides:
            if name not in found:
                probe = Probe(watched, entries, tower, side)
                found[name] = find_facts(probe, streams)
    return found


def _inputs(watched: Watched, entries: Entries) -> list[Line]:
    accepted = accepted_arguments(watched.model)
    if all(name in accepted for name in entries.batch):
        return []
    named = {name: name for name in entries.batch}
    return [Line("inputs", named, "the model takes some of them by **kwargs")]


def _streams(streams: Streams, entries: Entries) -> list[Line | Hint]:
    patterns = {stream: tower.pattern for stream, tower in streams.chosen.items()}
    lines: list[Line | Hint] = [Line("streams", patterns)]
    if not patterns:
        why = "neither words nor an image move what enters any attention"
        return [Hint("streams", why, is_missing=True)]
    ends = _ends_of(streams)
    counts = {stream: tower.examples for stream, tower in streams.chosen.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{stream} of {count}" for stream, count in counts.items())
        why = f"the towers run unequally many sequences ({told}): name the entries that pair them"
        lines.append(Hint("pairs = { text = ..., image = ... }", why, is_missing=True))
    if "joint" not in ends:
        for modality, given in (("text", entries.words), ("image", entries.images)):
            if given and modality not in ends:
                why = f"no attention that is read takes the {modality}: is it made by convolutions?"
                lines.append(Hint(f"streams: {modality}", why, is_missing=True))
    return lines


def _outputs(watched: Watched, entries: Entries, streams: Streams) -> list[Line | Hint]:
    logits, embeddings = find_outputs(watched, entries)
    hidden = find_hidden(watched, streams)
    lines: list[Line | Hint] = []
    if logits:
        lines.append(Line("logits", logits))
    if embeddings:
        lines.append(Line("embedding", embeddings))
    if hidden:
        lines.append(Line("hidden", hidden))
    return lines


def _absent(joint: Facts | None) -> list[Line | Hint]:
    """Directions in which no token of a joint stream sees one of the other modality."""
    if joint is None or joint.words is None or joint.words.problem:
        return []
    image = image_tokens(joint)
    words = torch.zeros_like(image)
    free = joint.probe.entries.are_free(joint.words.words)  # neither padding nor markers
    words[:, joint.words.start : joint.words.stop] = free
    words &= ~image
    patches = joint.patches
    if not bool(image.any()) or (patches is not None and patches.problem):
        return []
    why = {}
    if not sees(joint, image, words):
        why["attention.image_to_text"] = "the model lets no image token see a word"
    if not sees(joint, words, image):
        why["attention.text_to_image"] = "the model lets no word see an image token"
    return [Line("absent", why)] if why else []
