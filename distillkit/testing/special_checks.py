"""Special tokens: the same in every text, and moved by no image."""

from __future__ import annotations

import torch
from torch import Tensor

from .adapter_case import AdapterCase, forward
from .movement import Moved, moved_by
from .perturb import changed_image
from .sequences import TokenSequence, places_of, real_tokens
from .verdicts import NotApplicable, UnmetError, Unverified
from .words import Words, special_mask_of, words_of

_ENOUGH = 3  # texts: that two of them have a word in common is no evidence


def special_words(case: AdapterCase) -> str:
    """The special tokens of a text are the same in every example.

    Raises:
        NotApplicable: none is declared.
        UnmetError: they differ, and the tokens at another place are the same in every text.
        Unverified: they differ, as no tokenizer makes them, or there is one text only.
    """
    _, batch = case.made
    words = words_of(batch, case.run.layout)
    declared = words.special & words.present & words.valid
    if not bool(declared.any()):
        raise NotApplicable("no special word is declared")
    ids = words.at_tokens(batch[words.entry])
    if len(ids) < 2:
        raise Unverified("one text cannot show which of its tokens are in every text")
    if isinstance(words.tokens.special, Tensor):
        return f"{int(declared.sum())} special words by their ids"
    differing = [
        place
        for place in words.tokens.special
        if len(torch.unique(ids[:, place][declared[:, place]])) > 1
    ]
    if not differing:
        return f"special words at {words.tokens.special}"
    elsewhere = _same_in_all(words, ids)
    place = differing[0]
    if elsewhere:
        raise UnmetError(
            f"text token {place} is declared special, but is another word in each text; token "
            f"{elsewhere[0]} is the same in all {len(ids)}"
        )
    raise Unverified(
        f"text token {place} is declared special, and is another word in each text of this batch: "
        "take texts of a tokenizer"
    )


def _same_in_all(words: Words, ids: Tensor) -> list[int]:
    """Undeclared places that hold one token in enough texts, where other places do not."""
    shown = words.are_words
    found = []
    for place in range(ids.shape[1]):
        own = ids[:, place][shown[:, place]]
        if len(own) < max(_ENOUGH, len(ids)) or len(torch.unique(own)) > 1:
            continue
        others = shown.clone()
        others[:, place] = False
        if not bool((ids[others] == own[0]).any()):
            found.append(place)
    return found


def special_patches(case: AdapterCase) -> str:
    """No image moves a special token of the image, once nothing has mixed the patches.

    Raises:
        NotApplicable: none is declared.
        Unverified: one moves: it may be a patch, or what a model makes of all of them.
    """
    backbone, batch = case.made
    seen = 0
    for stream in dict.fromkeys(one.stream for one in case.run.sequences):
        of_stream = [one for one in case.run.sequences if one.stream == stream and _special(one)]
        if not of_stream:
            continue
        changed = changed_image(batch, backbone.adapter)
        with case.silenced(stream):
            before = forward(backbone, batch)
            moved = moved_by(case, before, changed)
        for one in moved:
            if one.sequence.stream == stream and _special(one.sequence):
                seen += _still(one)
    if not seen:
        raise NotApplicable("no special patch is declared")
    return f"{seen} special image tokens"


def _special(sequence: TokenSequence) -> bool:
    if sequence.tokens is None or "image" not in sequence.tokens:
        return False
    special = sequence.tokens["image"].special
    return bool(special.any()) if isinstance(special, Tensor) else bool(special)


def _still(one: Moved) -> int:
    assert one.sequence.tokens is not None
    by = one.of("image")
    real = real_tokens(one.sequence, one.sequence.length)
    real = real.take_along_dim(places_of(one.sequence, "image"), 1)
    special = special_mask_of(one.sequence.tokens["image"], real) & real
    moved = (special & (by > 0)).nonzero()
    if len(moved):
        example, token = moved[0].tolist()
        raise Unverified(
            f"image token {token} of the {one.sequence} is declared special, and another image "
            f"moves it (example {example}): is it a patch, or made of all of them?"
        )
    return int(special.sum())
