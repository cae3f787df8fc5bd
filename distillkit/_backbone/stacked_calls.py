"""The layout of a stream whose module runs several times in a forward, each call an example."""

from __future__ import annotations

from collections.abc import Mapping

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

    def known(x: Tensor | None) -> Tensor | None:
        return None if x is None else repeated(x)

    modalities = {
        modality: ModalityTokens(
            repeated(one.positions) if isinstance(one.positions, Tensor) else one.positions,
            repeated(one.special) if isinstance(one.special, Tensor) else one.special,
            repeated(one.grid) if isinstance(one.grid, Tensor) else one.grid,
            known(one.extents),
            known(one.ids),
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
