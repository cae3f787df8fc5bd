"""The layout of a stream whose module runs several times in a forward, each call an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .._capture.record import Record
from .._capture.stacked import EVERY_CALL, split_call
from .layout import ModalityTokens, StreamTokens


def count_calls(record: Record, streams: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Stream -> how many calls are stacked, and how many rows they make; others are left out."""
    found = {}
    for stream, pattern in streams.items():
        if split_call(pattern)[1] != EVERY_CALL:
            continue
        layers = record.layers(pattern)
        found[stream] = (len(record.calls(layers.names[-1])), layers[-1].shape[0])
    return found


def repeat_tokens(tokens: StreamTokens, calls: int, rows: int) -> StreamTokens:
    """The tokens of every call, row ``i * calls + c``, of those that the batch gives once.

    What has a row for each call already, and what is one for all examples, stays as it is.
    """

    def repeated(x: Tensor) -> Tensor:
        return x.repeat_interleave(calls, 0) if len(x) * calls == rows else x

    def of(x: object) -> object:
        return repeated(x) if isinstance(x, Tensor) else x

    modalities: dict[str, ModalityTokens] = {
        modality: replace(
            one,
            **{
                name: of(getattr(one, name))
                for name in ("positions", "special", "grid", "extents", "ids")
            },
        )
        for modality, one in tokens.items()
    }
    valid = None if tokens.valid is None else repeated(tokens.valid)
    return StreamTokens(modalities, valid)


def pairs_of_calls(stacked: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Modality -> which of its rows belongs to each call of the other one.

    Of a joint stream, the text of each row; of two towers of which one runs several times, the one
    that runs once is repeated.
    """
    if "joint" in stacked:
        calls, rows = stacked["joint"]
        return {"text": torch.arange(rows) // calls, "image": torch.arange(rows)}
    towers = {one: stacked[one] for one in ("text", "image") if one in stacked}
    if len(towers) != 1:
        return {}
    ((tower, (calls, rows)),) = towers.items()
    other = "text" if tower == "image" else "image"
    return {other: torch.arange(rows) // calls}
