"""Attention signals by direction, from the streams that a backbone has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from torch import Tensor

from .._attention import Attention
from ..errors import SignalError, did_you_mean
from .signals import Layers, Signal
from .tokens import StreamTokens, TokenLayout

DIRECTIONS = {"text_to_image": ("text", "image"), "image_to_text": ("image", "text")}

T = TypeVar("T", Tensor, Attention)

_LAYOUT_LINES = """say where its tokens sit, one run after another, in the adapter file:

[[tokens.{stream}]]
modality = "text"
length = "input_ids"         # the batch entry whose second axis is the length, or a number
mask = "attention_mask"      # the batch entry that is true for real tokens
special = [0]

[[tokens.{stream}]]
modality = "image"
special = [0]
grid = [12, 12]"""


def attention_signals(
    attentions: Mapping[str, Sequence[Attention]], layout: TokenLayout
) -> dict[str, Callable[[], Signal]]:
    """The attention signals that these streams offer, each computed when it is asked for.

    ``attention.text_to_image`` is, in this order: the stream of that name; the block of a joint
    stream between text and image; the cross attention of a text and an image tower.
    """
    offered: dict[str, Callable[[], Signal]] = {}
    for stream in attentions:
        offered[f"attention.{stream}"] = partial(_whole, stream, attentions, layout)
    for direction, (query, key) in DIRECTIONS.items():
        if direction in attentions:
            continue
        if "joint" in attentions:
            compute = partial(_block, query, key, attentions["joint"], layout)
        elif query in attentions and key in attentions:
            compute = partial(_crossed, query, key, attentions, layout)
        else:
            continue
        offered[f"attention.{direction}"] = compute
    return offered


def _whole(
    stream: str, attentions: Mapping[str, Sequence[Attention]], layout: TokenLayout
) -> Layers[Attention]:
    valid = _tokens(layout, stream).valid
    return Layers([partial(one.with_rows, valid) for one in attentions[stream]])


def _block(
    query: str, key: str, joint: Sequence[Attention], layout: TokenLayout
) -> Layers[Attention]:
    """DiDE's definition for a joint stream: the block of scores, renormalised."""
    tokens = _tokens(layout, "joint")
    for modality in (query, key):
        if modality not in tokens:
            raise SignalError(
                f"the layout of stream 'joint' has no {modality!r} tokens; "
                f"{did_you_mean(modality, tokens)}\n{_LAYOUT_LINES.format(stream='joint')}"
            )
    rows, keys = tokens[query].positions, tokens[key].positions
    return Layers([partial(_between, one, tokens.valid, rows, keys) for one in joint])


def _between(
    attention: Attention, valid: Tensor | None, rows: slice | Tensor, keys: slice | Tensor
) -> Attention:
    if valid is not None and valid.shape[1] != attention.shape[2]:
        raise SignalError(
            f"the layout of stream 'joint' describes {valid.shape[1]} tokens, but its attention "
            f"has {attention.shape[2]}: a run of [[tokens.joint]] is missing or has another length"
        )
    return attention.with_rows(valid).between(rows, keys)


def _crossed(
    query: str, key: str, attentions: Mapping[str, Sequence[Attention]], layout: TokenLayout
) -> Layers[Attention]:
    """DiDE's definition for two towers; where their depths differ, layers pair from the top."""
    rows, keys = (_real(layout, modality) for modality in (query, key))
    depth = min(len(attentions[query]), len(attentions[key]))

    def layer(index: int) -> Attention:
        of_query, of_key = (
            paired(attentions[m][index - depth], layout.pairs.get(m)) for m in (query, key)
        )
        return Attention.cross(of_query, of_key, rows=rows, keys=keys)

    return Layers([partial(layer, index) for index in range(depth)])


def _real(layout: TokenLayout, tower: str) -> Tensor | None:
    """The tokens of a tower that are no padding, pair by pair."""
    valid = _tokens(layout, tower).valid
    return None if valid is None else paired(valid, layout.pairs.get(tower))


def _tokens(layout: TokenLayout, stream: str) -> StreamTokens:
    if stream not in layout:
        raise SignalError(
            f"the attention of stream {stream!r} was asked for, but its token layout is not known; "
            + _LAYOUT_LINES.format(stream=stream)
        )
    return layout[stream]


def paired(x: T, index: Tensor | None) -> T:
    """Examples in the order of the pairs; None: example i belongs to pair i."""
    if index is None:
        return x
    return x.take(index) if isinstance(x, Attention) else x[index]
