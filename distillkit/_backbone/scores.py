"""Ranking scores of the candidates of each example, whatever a model returns for a pair."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import ShapeError, SignalError

CANDIDATES = "candidates"
"""The batch entry that says how many candidates each example has, or which there are."""


def pair_scores(logits: Tensor, match: int | None) -> Tensor:
    """One score ``(p,)`` for each pair, from what a cross-encoder returns for it.

    Args:
        logits: ``(p,)``, ``(p, 1)``, or ``(p, 2)``: of "no match" and "match".
        match: which of two classes is the match.

    Raises:
        SignalError: two classes of which nobody says which is the match; more classes.
    """
    if logits.ndim == 1:
        return logits
    classes = logits.shape[1] if logits.ndim == 2 else 0
    if classes == 1:
        return logits[:, 0]
    if classes == 2 and match in (0, 1):
        return logits[:, match] - logits[:, 1 - match]
    if classes == 2:
        raise SignalError(
            "scores are made of logits (p, 2) of a matching head, and which of both classes is the "
            "match is not known: say `match = 1`, or 0, in the adapter"
        )
    raise SignalError(
        f"scores are of pairs: logits (p,), (p, 1) or (p, 2) of a match; got {tuple(logits.shape)}"
    )


def cosine_scores(text: Tensor, image: Tensor) -> Tensor:
    """Cosines ``(texts, images)`` of every text with every image."""
    return normalize(text, dim=-1) @ normalize(image, dim=-1).mT


def grouped(scores: Tensor, candidates: Any) -> Tensor:
    """Scores of pairs ``(p,)`` as those of each example's candidates, ``(b, k)``.

    Args:
        scores: the candidates of the first example, then those of the second, ...
        candidates: k; or boolean ``(b, k)``, True for each that there is, in that order. The
            others are -inf.

    Raises:
        SignalError: no such entry, or one that is neither a whole number nor boolean ``(b, k)``.
        ShapeError: another number of pairs.

    Examples:
        >>> grouped(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[True, True], [True, False]]))
        tensor([[3., 1.],
                [2., -inf]])
    """
    count = len(scores)
    if _is_mask(candidates):
        there = candidates.to(scores.device)
        if int(there.sum()) != count:
            raise ShapeError(
                f"{CANDIDATES!r} marks {int(there.sum())} candidates, and the model scored {count} "
                "pairs"
            )
        banned = scores.new_full(there.shape, -torch.inf)
        return banned.masked_scatter(there, scores)
    if candidates is None:
        raise SignalError(
            f"scores are of the candidates of each example: the batch needs an entry {CANDIDATES!r}"
            ", how many each has, or boolean (b, k), True for each that there is"
        )
    size = _number(candidates)
    if size < 2 or count % size:
        raise ShapeError(
            f"{count} pairs do not make examples of {CANDIDATES} = {size} candidates each, of "
            "which there are at least 2"
        )
    return scores.reshape(-1, size)


def examples_with_scores(candidates: Any, pairs: int) -> int | None:
    """How many examples scores of so many pairs are of; None: nobody says it.

    Raises:
        SignalError: an entry that is neither a whole number nor boolean ``(b, k)``.
    """
    if candidates is None:
        return None
    if _is_mask(candidates):
        return len(candidates)
    return pairs // max(1, _number(candidates))


def _is_mask(candidates: Any) -> bool:
    return (
        isinstance(candidates, Tensor) and candidates.dtype == torch.bool and candidates.ndim == 2
    )


def _number(candidates: Any) -> int:
    """How many candidates each example has; 2.5 is no number of them, and neither is True."""
    if isinstance(candidates, Tensor) and candidates.ndim == 0:
        candidates = candidates.item()
    if isinstance(candidates, Integral) and not isinstance(candidates, bool):
        return int(candidates)
    given = repr(candidates)
    if isinstance(candidates, Tensor):
        given = f"a tensor {tuple(candidates.shape)} of {candidates.dtype}"
    raise SignalError(
        f"the batch entry {CANDIDATES!r} is a whole number, how many each example has, or a "
        f"boolean tensor (b, k), True for each that there is; got {given}"
    )
