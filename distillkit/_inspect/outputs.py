"""Logits, embeddings and hidden states: fields of the output and modules, by what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .entries import Entries
from .streams import Streams
from .towers import Watched

_WORDS = {"text": "text_embeds", "image": "image_embeds"}


def find_outputs(watched: Watched, entries: Entries) -> tuple[str | None, dict[str, str]]:
    """The field of the logits, and the field of each embedding, where the output has them."""
    before = fields_of(watched.forward(entries.batch).output)
    logits = before.get("logits")
    name = "logits" if logits is not None and logits.ndim in (2, 3) else None
    embeddings = {
        modality: field
        for modality, field in _WORDS.items()
        if field in before and before[field].ndim == 2
    }
    return name, embeddings if _are_of_their_own(watched, entries, before, embeddings) else {}


def _are_of_their_own(
    watched: Watched,
    entries: Entries,
    before: Mapping[str, Tensor],
    embeddings: Mapping[str, str],
) -> bool:
    """Whether another image moves the image's embedding and not that of the words."""
    if set(embeddings) != set(_WORDS) or not entries.images:
        return False
    after = fields_of(watched.forward(entries.other_images()).output)
    moved = {
        modality: not torch.allclose(before[field], after[field], atol=1e-6)
        for modality, field in embeddings.items()
    }
    return moved == {"text": False, "image": True}


def fields_of(output: Any) -> dict[str, Tensor]:
    """The tensors of an output by name."""
    if isinstance(output, Mapping):
        named: Mapping[str, Any] = output
    else:
        names = getattr(output, "_fields", None) or getattr(output, "__dict__", {})
        named = {name: getattr(output, name) for name in names}
    return {str(name): x for name, x in named.items() if isinstance(x, Tensor)}


def find_hidden(watched: Watched, streams: Streams) -> dict[str, str]:
    """Stream -> the layers around its attentions, where each returns ``(b, n, d)``."""
    patterns = {
        stream: tower.pattern.partition("#")[0].rpartition("*")[0] + "*"
        for stream, tower in streams.chosen.items()
        if "*" in tower.pattern and tower.kind == "self"
    }
    if not patterns:
        return {}
    outputs = watched.outputs(patterns.values())
    found = {}
    for stream, pattern in patterns.items():
        tower = streams.chosen[stream]
        depth = pattern.count(".") + 1
        names = list(dict.fromkeys(".".join(n.split(".")[:depth]) for n in tower.names))
        firsts = [_first(outputs.get(name)) for name in names]
        expected = (tower.examples, tower.lengths[0])
        if watched.count(pattern) == len(names) and all(
            isinstance(x, Tensor) and x.ndim == 3 and x.shape[:2] == expected for x in firsts
        ):
            found[stream] = pattern
    return found


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) and output else output
