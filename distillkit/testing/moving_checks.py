"""Checks of an adapter that change the image or the words, and look at which tokens move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import SignalError
from .adapter_case import AdapterCase
from .movement import Moved, moved_by
from .perturb import changed_image, changed_text, richer_entries
from .sequences import TokenSequence, places_of, real_tokens
from .special_checks import special_patches, special_words
from .verdicts import NotApplicable, UnmetError, Unverified
from .words import Words, special_mask_of, words_of

_AS_FAR = 0.5  # of what tokens of the changed modality move: it is one of them


def image_moves_only_image_tokens(case: AdapterCase) -> str:
    """With another image, the declared image tokens enter the first attention otherwise."""
    backbone, batch = case.made
    by_image = moved_by(case, case.run, changed_image(batch, backbone.adapter))
    by_text = _moved_by_text(case)
    return _only_moves("image", by_image, by_text)


def text_moves_only_text_tokens(case: AdapterCase) -> str:
    """With other words, the declared text tokens do, and no image token."""
    backbone, batch = case.made
    words = words_of(batch, case.run.layout)
    by_text = moved_by(case, case.run, changed_text(batch, words))
    try:
        by_image = moved_by(case, case.run, changed_image(batch, backbone.adapter))
    except SignalError:  # a model of text alone
        by_image = []
    seen = _only_moves("text", by_text, by_image, words)
    for name, other in richer_entries(batch, words).items():
        also = moved_by(case, case.run, other)
        if all(_moves_all(one, two, words) for one, two in zip(by_text, also, strict=True)):
            raise UnmetError(
                f"the layout takes {words.entry!r} for the vocabulary entries of the words, but "
                f"{name!r}, which has more values, moves them too: are those of {words.entry!r} "
                "kinds of tokens? Name the right entry, `ids` in an adapter file"
            )
    return seen


def special_tokens_hold_no_content(case: AdapterCase) -> str:
    """Special tokens are the same in every text, and no image moves them."""
    seen, doubts = [], []
    for check in (special_words, special_patches):
        try:
            seen.append(check(case))
        except NotApplicable:
            continue
        except Unverified as doubt:
            doubts.append(str(doubt))
    if doubts:
        raise Unverified("; ".join(doubts))
    if not seen:
        raise NotApplicable("no special token is declared")
    return ", ".join(seen)


def _moved_by_text(case: AdapterCase) -> list[Moved]:
    """How far other words move tokens; nothing, where there are no words."""
    _, batch = case.made
    try:
        words = words_of(batch, case.run.layout)
        return moved_by(case, case.run, changed_text(batch, words))
    except (NotApplicable, SignalError):
        return []


def _only_moves(
    modality: str, by_own: Sequence[Moved], by_other: Sequence[Moved], words: Words | None = None
) -> str:
    """Tokens of the changed modality move, and those of the other one less than by their own."""
    other = "text" if modality == "image" else "image"
    if not any(one.sequence.tokens and modality in one.sequence.tokens for one in by_own):
        raise NotApplicable(f"no stream has {modality} tokens")
    if not any(bool(one.by.any()) for one in by_own):
        raise Unverified(
            f"another {modality} moves no token of any stream: the model, with these weights, does "
            "not pass it on"
        )
    moved_any, doubts = 0, []
    for i, one in enumerate(by_own):
        tokens = one.sequence.tokens
        assert tokens is not None
        if other in tokens:
            doubts += _leaks(modality, other, one, by_other[i] if by_other else None)
        if modality not in tokens:
            continue
        must = _content(one.sequence, modality)
        if words is not None and words.are_words.shape == must.shape:
            must = must & words.are_words
        still = (must & (one.of(modality) == 0)).nonzero()
        if len(still):
            example, token = still[0].tolist()
            raise UnmetError(
                f"another {modality} did not move {modality} token {token} of the {one.sequence}, "
                f"example {example}: it is no {modality} token, or a special one that is not "
                "declared"
            )
        moved_any += int(must.sum())
    if doubts:
        raise Unverified(doubts[0])
    return f"{moved_any} {modality} tokens moved"


def _content(sequence: TokenSequence, modality: str) -> Tensor:
    """``(b, m)``: a modality's tokens that are no padding and not special."""
    assert sequence.tokens is not None
    places = places_of(sequence, modality)
    real = real_tokens(sequence, sequence.length).take_along_dim(places, 1)
    return real & ~special_mask_of(sequence.tokens[modality], real)


def _leaks(modality: str, other: str, one: Moved, by_other: Moved | None) -> list[str]:
    """Doubts about tokens of the other modality that move although theirs was not changed.

    Raises:
        UnmetError: they move as if they were of the changed one.
    """
    sequence = one.sequence
    assert sequence.tokens is not None
    leaked = one.of(other)
    if not bool(leaked.any()):
        return []
    own = torch.zeros_like(leaked) if by_other is None else by_other.of(other)
    of_words = _content(sequence, other)
    # what moves a token less than its own modality does has reached it through a mixing layer
    mixed = bool((of_words & (leaked > 0) & (leaked < own)).any())
    suspect = (leaked > own) & (of_words if mixed else torch.ones_like(of_words))
    if not bool(suspect.any()):
        return []
    example, token = suspect.nonzero()[0].tolist()
    as_far = 0.0
    if modality in sequence.tokens:
        moved = one.of(modality)[_content(sequence, modality)]
        as_far = _AS_FAR * float(moved.median()) if moved.numel() else 0.0
    said = f"another {modality} moved {other} token {token} of the {sequence}, example {example}"
    if float(leaked[suspect].max()) >= as_far:
        raise UnmetError(f"{said}: the layout has the modalities at wrong positions")
    doubt = (
        f"{said}, less than it moves {modality} tokens, and other {other} does not move it: a "
        "layer before the first attention mixes tokens"
    )
    return [doubt]


def _moves_all(one: Moved, two: Moved, words: Words) -> bool:
    """Whether a change of another entry moves every word that a change of the words moves."""
    tokens = one.sequence.tokens
    if tokens is None or "text" not in tokens or one.of("text").shape != words.are_words.shape:
        return True
    return bool((two.of("text")[words.are_words] > 0).all())
