"""Which positions of logits are tokens, and which of those are padding."""

from __future__ import annotations

import torch
from torch import Tensor

from .axis import TokenAxis, token_axis
from .layout import ModalityTokens, StreamTokens, TokenLayout
from .tokens import chosen


def logits_axis(logits: Tensor, layout: TokenLayout) -> TokenAxis | None:
    """The tokens along the second axis of logits ``(b, n, v)``.

    They are, in this order, the tokens of a joint stream of n tokens, the n words in a joint
    stream, or a text stream of n tokens; None where the layout knows of no n tokens.

    Examples:
        >>> words = ModalityTokens(slice(0, 3))
        >>> padding = torch.tensor([[True, True, False]])
        >>> layout = TokenLayout({"text": StreamTokens({"text": words}, padding)})
        >>> logits_axis(torch.zeros(1, 3, 8), layout).valid
        tensor([[ True,  True, False]])
    """
    if logits.ndim != 3:
        return None
    examples, count = logits.shape[:2]
    joint, text = layout.get("joint"), layout.get("text")
    if joint is not None:
        length = stream_length(joint)
        if length == count:
            return _whole("joint", joint, examples, None)
        if "text" in joint and length is not None:
            words = token_axis(joint["text"], "text", _all_valid(joint, joint["text"]), length)
            if words.valid is not None and words.valid.shape == (examples, count):
                return words
    if text is not None and stream_length(text) == count:
        return _whole("text", text, examples, layout.pairs.get("text"))
    return None


def known_axes(logits: object, layout: TokenLayout) -> tuple[TokenAxis, ...]:
    """The one token axis of logits, as ``Signals.axes`` has it; nothing, where none is known."""
    found = logits_axis(logits, layout) if isinstance(logits, Tensor) else None
    return () if found is None else (found,)


def stream_length(tokens: StreamTokens) -> int | None:
    """The number of tokens in a stream's sequence; None where its layout does not say it."""
    if tokens.valid is not None:
        return tokens.valid.shape[1]
    places = [one.positions for one in tokens.modalities.values()]
    marked = [x.shape[-1] for x in places if isinstance(x, Tensor) and x.dtype == torch.bool]
    if marked:
        return marked[0]
    if not all(isinstance(x, slice) and isinstance(x.stop, int) for x in places):
        return None
    return max((x.stop for x in places if isinstance(x, slice)), default=None)


def _whole(
    stream: str, tokens: StreamTokens, examples: int, pairs: Tensor | None
) -> TokenAxis | None:
    """All tokens of a stream, for as many examples as the logits are of."""
    valid = tokens.valid
    if valid is None:
        return None
    if len(valid) != examples and pairs is not None:
        valid = chosen(valid, pairs)
    if len(valid) == 1:
        valid = valid.expand(examples, -1)
    return TokenAxis(stream, valid) if len(valid) == examples else None


def _all_valid(tokens: StreamTokens, modality: ModalityTokens) -> Tensor | None:
    """The padding of a stream; where it has none, examples may still have unequally many words."""
    positions = modality.positions
    if tokens.valid is None and isinstance(positions, Tensor) and positions.dtype == torch.bool:
        return torch.ones_like(positions)
    return tokens.valid
