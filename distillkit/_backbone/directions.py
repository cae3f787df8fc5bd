"""Attention signals by direction, from the streams that a backbone has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TypeAlias, TypeVar

from torch import Tensor

from .._attention import Attention
from .._capture.record import Record
from .._capture.stacked import EVERY_CALL, split_call, stack_tensors
from ..errors import SignalError, did_you_mean
from .axis import TokenAxis, token_axis
from .layout import StreamTokens, TokenLayout
from .logits import known_axes, stream_length
from .signals import Layers, Signal, Signals, TokenAxes

DIRECTIONS = {"text_to_image": ("text", "image"), "image_to_text": ("image", "text")}

Tokens: TypeAlias = "slice | Tensor"
T = TypeVar("T", Tensor, Attention, TokenAxis)

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


def build_signals(
    record: Record,
    streams: Mapping[str, str],
    layout: TokenLayout,
    *,
    values: Mapping[str, Signal | Callable[[], Signal]] | None = None,
    hidden: Mapping[str, str] | None = None,
    absent: Mapping[str, str] | None = None,
    through: str | None = None,
) -> Signals:
    """Build the signals of one forward from its streams, as most adapters do.

    Args:
        record: what capture saw of the forward.
        streams: the adapter's own ``streams``.
        layout: what the adapter's ``layout`` said of this forward.
        values: further signals by name, such as ``logits``; a function is called when needed.
        hidden: stream -> pattern of the modules among the adapter's ``outputs`` that return its
            hidden states.
        absent: signals that this backbone cannot have -> why; asking for one says so.
        through: the modality of the tokens of a joint stream through which words see the image:
            ``attention.text_to_image`` is composed with the stream ``<through>_to_image``.
    """
    attentions = {stream: record.layers(pattern) for stream, pattern in streams.items()}
    offered, axes = attention_signals(attentions, layout, through)
    found: dict[str, Signal | Callable[[], Signal]] = {**(values or {}), **offered}
    masks: dict[str, Tensor] = {}
    for stream, pattern in (hidden or {}).items():
        name = f"hidden.{stream}"
        outputs = record.output_names(pattern)
        call = pattern.partition("#")[1:]
        found[name] = Layers(
            [partial(output_tensor, record, "".join((output, *call))) for output in outputs]
        )
        valid = layout[stream].valid if stream in layout else None
        if valid is not None:
            masks[name] = valid
        if stream in layout and len(layout[stream]) == 1:
            axes[name] = partial(_axes_of, tuple(layout[stream]), layout, stream)
    places: dict[str, TokenAxes | Callable[[], TokenAxes]] = {**axes}
    logits = found.get("logits")
    if callable(logits):
        found["logits"] = later = cache(logits)  # whoever asks for its padding first computes it
        places["logits"] = lambda: known_axes(later(), layout)
    elif known := known_axes(logits, layout):
        places["logits"] = known
        if known[0].valid is not None:
            masks["logits"] = known[0].valid
    return Signals(found, masks, axes=places, absent=absent)


def attention_signals(
    attentions: Mapping[str, Sequence[Attention]],
    layout: TokenLayout,
    through: str | None = None,
) -> tuple[dict[str, Callable[[], Signal]], dict[str, Callable[[], TokenAxes]]]:
    """The attention signals that these streams offer and their axes, computed when asked for.

    ``attention.text_to_image`` is, in this order: the stream of that name; the block of a joint
    stream between text and image; the cross attention of a text and an image tower. Where words see
    the image ``through`` latents, it is composed, and no image token sees a word.
    """
    offered: dict[str, Callable[[], Signal]] = {}
    axes: dict[str, Callable[[], TokenAxes]] = {}
    for stream in attentions:
        offered[f"attention.{stream}"] = partial(_whole_stream, stream, attentions, layout)
        if _modalities_of(stream):
            axes[f"attention.{stream}"] = partial(_axes_of, _modalities_of(stream), layout, None)
        elif stream in layout and len(layout[stream]) == 1:  # a tower, whose tokens are of one kind
            ends = 2 * tuple(layout[stream])
            axes[f"attention.{stream}"] = partial(_axes_of, ends, layout, stream)
    joint = "joint" if "joint" in attentions else None
    if through is not None:
        offered["attention.text_to_image"] = partial(_through, through, attentions, layout)
        axes["attention.text_to_image"] = lambda: (
            *_axes_of(("text",), layout, "joint"),
            *_axes_of(("image",), layout, None),
        )
    for direction, modalities in DIRECTIONS.items():
        if direction in attentions or through is not None:
            continue
        if joint:
            compute = partial(_block, modalities, attentions["joint"], layout)
        elif all(modality in attentions for modality in modalities):
            compute = partial(_cross_towers, modalities, attentions, layout)
        else:
            continue
        offered[f"attention.{direction}"] = compute
        axes[f"attention.{direction}"] = partial(_axes_of, modalities, layout, joint)
    return offered, axes


def _whole_stream(
    stream: str, attentions: Mapping[str, Sequence[Attention]], layout: TokenLayout
) -> Layers[Attention]:
    rows = stream
    block: tuple[Tokens | None, Tokens | None] = (None, None)
    if _modalities_of(stream) and stream not in layout:
        rows = _modalities_of(stream)[0]
        queries, keys = _modalities_of(stream)
        block = _places_in_tower(layout, queries), _places_in_tower(layout, keys)
    attention, tokens = attentions[stream], _tokens(layout, rows)
    layer = partial(_with_rows, attention, tokens=tokens, stream=rows, block=block)
    return Layers([partial(layer, i) for i in range(len(attention))])


def _with_rows(
    attention: Sequence[Attention],
    layer: int,
    tokens: StreamTokens,
    stream: str,
    block: tuple[Tokens | None, Tokens | None],
) -> Attention:
    found: Attention = attention[layer]
    _check_length(found.shape[2], tokens, stream)
    return block_between(found.with_rows(tokens.valid), *block)


def block_between(attention: Attention, rows: Tokens | None, keys: Tokens | None) -> Attention:
    """Some rows and keys of an attention; None: all of them."""
    if rows is None and keys is None:
        return attention
    return attention.between(*(slice(None) if one is None else one for one in (rows, keys)))


def _places_in_tower(layout: TokenLayout, modality: str) -> Tokens | None:
    """Where a tower's own modality sits among learned tokens of other names; None: it is alone."""
    tokens = layout.get(modality)
    if tokens is None or modality not in tokens or len(tokens) == 1:
        return None
    positions = tokens[modality].positions
    if isinstance(positions, slice):
        return positions
    index = layout.pairs.get(modality)
    return positions if index is None else positions[index]


def _block(
    modalities: tuple[str, str], joint: Sequence[Attention], layout: TokenLayout
) -> Layers[Attention]:
    """DiDE's definition for a joint stream: the block of scores, renormalised."""
    tokens = _tokens(layout, "joint")
    for modality in modalities:
        if modality not in tokens:
            raise SignalError(
                f"the layout of stream 'joint' has no {modality!r} tokens; "
                f"{did_you_mean(modality, tokens)}\n{_LAYOUT_LINES.format(stream='joint')}"
            )
    rows, keys = (tokens[modality].positions for modality in modalities)
    return Layers(
        [partial(_block_of_layer, joint, i, tokens, rows, keys) for i in range(len(joint))]
    )


def _block_of_layer(
    joint: Sequence[Attention],
    layer: int,
    tokens: StreamTokens,
    rows: slice | Tensor,
    keys: slice | Tensor,
) -> Attention:
    found: Attention = joint[layer]
    _check_length(found.shape[2], tokens, "joint")
    return found.with_rows(tokens.valid).between(rows, keys)


def _through(
    latent: str, attentions: Mapping[str, Sequence[Attention]], layout: TokenLayout
) -> Layers[Attention]:
    """Every layer of words over latents, with what the last layer of the latents' stream reads."""
    stream = f"{latent}_to_image"
    to_latents = _block(("text", latent), attentions["joint"], layout)
    to_image = _whole_stream(stream, attentions, layout)
    index = layout.pairs.get("image")

    # the last layer of every stream is recorded, whatever is wanted: no `sources` name it
    def layer(number: int) -> Attention:
        keys = attentions[stream][-1].shape[3]
        _check_length(keys, _tokens(layout, "image"), "image")
        latents: Attention = pair_examples(to_image[-1], index)
        words: Attention = to_latents[number]
        return words.through(latents)

    return Layers([partial(layer, number) for number in range(len(to_latents))])


def _check_length(length: int, tokens: StreamTokens, stream: str) -> None:
    described = stream_length(tokens)
    if described is not None and described != length:
        raise SignalError(
            f"the layout of stream {stream!r} describes {described} tokens, but its attention "
            f"has {length}: a run of [[tokens.{stream}]] is missing or has another length"
        )


def _cross_towers(
    modalities: tuple[str, str],
    attentions: Mapping[str, Sequence[Attention]],
    layout: TokenLayout,
) -> Layers[Attention]:
    """DiDE's definition for two towers; where their depths differ, layers pair from the top."""
    query, key = modalities
    rows, keys = (_valid_pairs(layout, modality) for modality in modalities)
    places = tuple(_places_in_tower(layout, modality) for modality in modalities)
    depth = min(len(attentions[query]), len(attentions[key]))

    def layer(index: int) -> Attention:
        of_query, of_key = (
            pair_examples(attentions[m][index - depth], layout.pairs.get(m)) for m in modalities
        )
        crossed = Attention.cross(of_query, of_key, rows=rows, keys=keys)
        return block_between(crossed, *places)

    return Layers([partial(layer, index) for index in range(depth)])


def _valid_pairs(layout: TokenLayout, tower: str) -> Tensor | None:
    """The tokens of a tower that are no padding, pair by pair."""
    valid = _tokens(layout, tower).valid
    return None if valid is None else pair_examples(valid, layout.pairs.get(tower))


def _modalities_of(stream: str) -> tuple[str, ...]:
    """Whose queries read whose keys in a cross-attention stream, ``"text_to_image"``; else ()."""
    query, _, key = stream.partition("_to_")
    return (query, key) if key else ()


def _axes_of(modalities: tuple[str, ...], layout: TokenLayout, joint: str | None) -> TokenAxes:
    """The tokens of queries and keys; None where the layout does not know them."""
    axes: list[TokenAxis | None] = []
    for modality in modalities:
        tokens = layout.get(joint or modality)
        if tokens is None or modality not in tokens:
            axes.append(None)
            continue
        axis = token_axis(tokens[modality], modality, tokens.valid, stream_length(tokens))
        axes.append(axis if joint else pair_examples(axis, layout.pairs.get(modality)))
    return tuple(axes)


def _tokens(layout: TokenLayout, stream: str) -> StreamTokens:
    if stream not in layout:
        raise SignalError(
            f"the attention of stream {stream!r} was asked for, but its token layout is not known; "
            + _LAYOUT_LINES.format(stream=stream)
        )
    return layout[stream]


def pair_examples(x: T, index: Tensor | None) -> T:
    """Examples in the order of the pairs; None: example i belongs to pair i."""
    if index is None:
        return x
    return x[index] if isinstance(x, Tensor) else x.take(index)


def first_tensor(value: object) -> Tensor:
    """The value, or the first of a tuple: blocks often return ``(hidden, ...)``."""
    first = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(first, Tensor):
        raise SignalError(f"expected a tensor or a tuple that starts with one; got {type(value)}")
    return first


def output_tensor(record: Record, name: str) -> Tensor:
    """What a module returned; ``"layer.0#*"``: in each of its calls, stacked as examples."""
    module, call = split_call(name)
    if call == EVERY_CALL:
        return stack_tensors(module, [first_tensor(one) for one in record.output(name)])
    return first_tensor(record.output(name))


def layer_sources(
    streams: Mapping[str, str], hidden: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """The modules that the layers of every signal are made of, for an adapter's ``sources``.

    This is what :func:`build_signals` reads: layer i of a signal, counted from the top, is made of
    the i-th module from the top of each pattern.

    Args:
        streams: the adapter's own ``streams``.
        hidden: stream -> pattern of the modules that return its hidden states.

    Returns:
        Signal -> patterns of modules.

    Examples:
        >>> layer_sources({"text": "text.blocks.*", "image": "image.blocks.*"})["attention.text"]
        ('text.blocks.*',)
    """
    found: dict[str, tuple[str, ...]] = {
        f"attention.{stream}": (pattern,) for stream, pattern in streams.items()
    }
    for direction, modalities in DIRECTIONS.items():
        if direction in streams:
            continue
        if "joint" in streams:
            found[f"attention.{direction}"] = (streams["joint"],)
        elif all(modality in streams for modality in modalities):
            found[f"attention.{direction}"] = tuple(streams[one] for one in modalities)
    return found | {f"hidden.{stream}": (pattern,) for stream, pattern in (hidden or {}).items()}
