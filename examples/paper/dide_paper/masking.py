"""Masked words, as BERT and ViLT are pre-trained."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100


def mask_words(
    ids: Tensor,
    special: Tensor,
    *,
    mask_id: int,
    words: int,
    probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Hide some words, and say which.

    Of the chosen words 80 % become the mask, 10 % any other word and 10 % stay.

    Args:
        ids: ``(b, n)``.
        special: ``(b, n)``: tokens that are never hidden: [CLS], [SEP], padding.
        mask_id: the mask's number.
        words: how many words there are.
        probability: of each word to be chosen.
        generator: of the choice.

    Returns:
        The words to read and those to predict, -100 where there is nothing to predict.
    """
    draw = torch.rand(ids.shape, generator=generator)
    chosen = (draw < probability) & ~special.bool()
    labels = torch.where(chosen, ids, IGNORED)
    how = torch.rand(ids.shape, generator=generator)
    others = torch.randint(words, ids.shape, generator=generator)
    hidden = torch.where(chosen & (how < 0.8), mask_id, ids)
    return torch.where(chosen & (how >= 0.9), others, hidden), labels
