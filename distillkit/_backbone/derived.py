"""Signals that every backbone has, made of those that its adapter offers and of its token layout.

They are computed when they are asked for by name, and are not listed beside the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .._attention import Attention
from .._attention.selection import Selection
from ..errors import SignalError
from .axis import TokenAxis, token_axis
from .batch import SideOfBatch
from .beside import TokenAxes
from .depth import Wanted
from .directions import block_between, pair_examples
from .layers import Layers
from .layout import StreamTokens, TokenLayout
from .logits import known_axes, stream_length
from .response import PARTS, LabelRule, logit_places
from .scores import CANDIDATES, cosine_scores, grouped, pair_scores

ALL = "all"
"""The name of every token of a stream, among the modalities."""


class Derived(NamedTuple):
    """A signal that is made of others, and what is known of its tokens."""

    value: Callable[[], Any]
    axes: Callable[[], TokenAxes]


@dataclass(frozen=True)
class Sources:
    """What derived signals are made of.

    Attributes:
        signals: what the adapter offers, by name.
        absent: what the backbone cannot have.
        layout: where its tokens sit.
        batch: where labels are found.
        rule: where the logits of a label are.
        match: of two classes of a matching head, the match.
        head: the output projection's input, weight, bias and soft cap, as far as they are known.
    """

    signals: Mapping[str, Any]
    absent: Mapping[str, str]
    layout: TokenLayout
    batch: SideOfBatch
    rule: LabelRule
    match: int | None = None
    head: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)


def derived_signals(sources: Sources) -> dict[str, Derived]:
    """Every derived signal by name, none of them computed.

    - ``logits.response``, ``logits.prompt``, ``logits.image``: the logits of a decoder at some of
      its positions;
    - ``scores``, ``(b, k)``: ranking scores of the candidates of each example, made of what a
      cross-encoder returns for each pair, or of the embeddings of a dual encoder;
    - ``scores.text_to_image``, ``scores.image_to_text``: cosines of all texts and images;
    - ``head.input``: what goes into the output projection, and the same of its parts, as of logits;
      ``head.weight``, ``head.bias``, ``head.softcap``: the projection itself;
    - ``hidden.<stream>.<modality>``: hidden states of one modality;
    - ``attention.<query>_to_<key>``: of any two modalities of the joint stream, renormalised over
      the keys; ``all`` is every token;
    - ``attention_mass.<query>_to_<key>``: the share of each row's probability on those keys.
    """
    found = dict(_of_logits(sources))
    found.update(_of_pairs(sources))
    found.update(_of_head(sources))
    found.update(_of_hidden(sources))
    found.update(_of_attention(sources))
    known = (*sources.signals, *sources.absent)
    return {name: one for name, one in found.items() if name not in known}


def base_wanted(wanted: Wanted, offered: Mapping[str, object]) -> Wanted:
    """The layers of the signals that an adapter offers, for what is wanted of derived ones too."""
    found = dict(wanted)
    for name in wanted:
        base = None if name in offered else base_of(name)
        if base is None:
            continue
        layers, more = found.get(base, frozenset()), found.pop(name)
        if isinstance(layers, str) or isinstance(more, str):
            found[base] = "all"
        else:
            found[base] = layers | more
    return found


def base_of(name: str) -> str | None:
    """The signal that a derived one is made of; None: that is no derived signal's name.

    Examples:
        >>> base_of("hidden.joint.image"), base_of("attention_mass.all_to_image"), base_of("logits")
        ('hidden.joint', 'attention.joint', None)
    """
    kind, *rest = name.split(".")
    if kind == "logits" and rest:
        return "logits"
    if kind == "hidden" and len(rest) == 2:
        return f"hidden.{rest[0]}"
    if kind in ("attention", "attention_mass") and len(rest) == 1 and "_to_" in rest[0]:
        return "attention.joint"
    return None


def _of_logits(sources: Sources) -> Iterator[tuple[str, Derived]]:
    if "logits" not in sources.signals:
        return
    yield from _parts(sources, "logits", lambda: sources.signals["logits"])


def _of_head(sources: Sources) -> Iterator[tuple[str, Derived]]:
    for name, value in sources.head.items():
        if name == "head.input":
            axes = partial(_logit_axes, sources, value)
            yield name, Derived(value, axes)
            yield from _parts(sources, name, value)
        else:
            yield name, Derived(value, tuple)


def _logit_axes(sources: Sources, value: Callable[[], Tensor]) -> TokenAxes:
    return known_axes(value(), sources.layout)


def _parts(
    sources: Sources, name: str, value: Callable[[], Tensor]
) -> Iterator[tuple[str, Derived]]:
    """The positions of each part of logits, or of what logits are made of position by position."""
    for part in PARTS:
        places = cache(partial(_places_of, sources, f"{name}.{part}", value))
        yield f"{name}.{part}", Derived(partial(_packed, places), partial(_packed_axis, places))


def _places_of(
    sources: Sources, name: str, value: Callable[[], Tensor]
) -> tuple[Tensor, Selection, Tensor]:
    """The values, and the positions among them, boolean ``(b, n)``."""
    found = value()
    places = logit_places(name, found, sources.layout, sources.batch, sources.rule)
    return found, Selection(places, places.shape[1]), places


def _packed(places: Callable[[], tuple[Tensor, Selection, Tensor]]) -> Tensor:
    logits, selected, _ = places()
    return _selected(logits, selected)


def _selected(x: Tensor, selected: Selection) -> Tensor:
    """Tokens along the second axis; 0 where an example has fewer than another."""
    present = selected.present(3)
    taken = selected.along(x, 1)
    return taken if present is None else torch.where(present[:, 0, 0, :, None], taken, 0)


def _packed_axis(places: Callable[[], tuple[Tensor, Selection, Tensor]]) -> TokenAxes:
    _, selected, where = places()
    present = selected.present(3)
    valid = where.new_ones(len(where), selected.count) if present is None else present[:, 0, 0]
    return (TokenAxis("text", valid, positions=where, length=where.shape[1]),)


def _of_pairs(sources: Sources) -> Iterator[tuple[str, Derived]]:
    towers = {"embedding.text", "embedding.image"} <= set(sources.signals)
    if towers or "logits" in sources.signals:
        yield "scores", Derived(partial(_scores, sources), tuple)
    if towers:
        yield "scores.text_to_image", Derived(partial(_cosines, sources), tuple)
        yield "scores.image_to_text", Derived(lambda: _cosines(sources).mT, tuple)


def _scores(sources: Sources) -> Tensor:
    candidates = sources.batch.get(CANDIDATES)
    if "logits" in sources.signals:
        return grouped(pair_scores(sources.signals["logits"], sources.match), candidates)
    text, image = (
        pair_examples(sources.signals[f"embedding.{one}"], sources.layout.pairs.get(one))
        for one in ("text", "image")
    )
    if len(text) != len(image):
        raise SignalError(
            f"scores are of pairs, and there are {len(text)} texts and {len(image)} images: say "
            "which belong together (`pairs` in the adapter); of all with all there are "
            "scores.text_to_image and scores.image_to_text"
        )
    return grouped((normalize(text, dim=-1) * normalize(image, dim=-1)).sum(-1), candidates)


def _cosines(sources: Sources) -> Tensor:
    return cosine_scores(sources.signals["embedding.text"], sources.signals["embedding.image"])


def _of_hidden(sources: Sources) -> Iterator[tuple[str, Derived]]:
    for name in sources.signals:
        stream = name.partition(".")[2]
        if not name.startswith("hidden.") or stream not in sources.layout:
            continue
        if len(sources.layout[stream]) == 1:
            continue  # they are that modality's already
        for modality in sources.layout[stream]:
            value = partial(_hidden_of, sources, str(name), stream, modality)
            axis = partial(_axes, sources.layout[stream], (modality,))
            yield f"{name}.{modality}", Derived(value, axis)


def _hidden_of(sources: Sources, name: str, stream: str, modality: str) -> Layers[Tensor]:
    positions = sources.layout[stream][modality].positions

    def restricted(layers: Sequence[Tensor], index: int) -> Tensor:
        layer = layers[index]
        return _selected(layer, Selection(positions, layer.shape[1]))

    layers = sources.signals[name]
    return Layers([partial(restricted, layers, i) for i in range(len(layers))])


def _of_attention(sources: Sources) -> Iterator[tuple[str, Derived]]:
    joint = sources.layout.get("joint")
    if joint is None or "attention.joint" not in sources.signals:
        return
    for query in (*joint, ALL):
        for key in joint:
            name = f"{query}_to_{key}"
            if f"attention.{name}" in sources.absent:
                continue
            pair = query, key
            blocks = partial(_layers, _block, sources, pair)
            shares = partial(_layers, _share, sources, pair)
            axes = partial(_axes, joint, pair)
            yield f"attention.{name}", Derived(blocks, axes)
            yield f"attention_mass.{name}", Derived(shares, partial(_axes, joint, (query,)))


def _layers(
    make: Callable[[Attention, StreamTokens, tuple[str, str]], Any],
    sources: Sources,
    pair: tuple[str, str],
) -> Layers[Any]:
    joint, tokens = sources.signals["attention.joint"], sources.layout["joint"]

    def layer(index: int) -> Any:
        return make(joint[index], tokens, pair)

    return Layers([partial(layer, i) for i in range(len(joint))])


def _block(attention: Attention, tokens: StreamTokens, pair: tuple[str, str]) -> Attention:
    query, key = (None if one == ALL else tokens[one].positions for one in pair)
    return block_between(attention, query, key)


def _share(attention: Attention, tokens: StreamTokens, pair: tuple[str, str]) -> Tensor:
    """``(b, q, h)``: how much of each row's probability lies on the keys, every head."""
    query, key = pair
    rows = block_between(attention, None if query == ALL else tokens[query].positions, None)
    keys = Selection(tokens[key].positions, attention.shape[3])
    share = keys.along(rows.probabilities(), 3)
    present = keys.present(3)
    if present is not None:
        share = torch.where(present, share, 0)
    return share.sum(-1).mT


def _axes(tokens: StreamTokens, modalities: Sequence[str]) -> TokenAxes:
    return tuple(_axis(tokens, one) for one in modalities)


def _axis(tokens: StreamTokens, modality: str) -> TokenAxis | None:
    length = stream_length(tokens)
    if modality != ALL:
        return token_axis(tokens[modality], modality, tokens.valid, length)
    return None if tokens.valid is None else TokenAxis(ALL, tokens.valid, length=length)
