"""How far each token moves at the first attention when the input changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .adapter_case import AdapterCase, Run, forward
from .sequences import TokenSequence, places_of
from .verdicts import UnmetError

STILL = 1e-5  # of the largest number; below it, a token did not move


def movement(one: TokenSequence, two: TokenSequence) -> Tensor:
    """``(b, n)``: how far each token moved, as a part of the largest number among them; or 0."""
    before, after = one.entering, two.entering
    if before.shape != after.shape:
        raise UnmetError(f"the {one} has another length after its content changed")
    return how_far(before, after)


def how_far(before: Tensor, after: Tensor) -> Tensor:
    """``(b, n)``: how far tokens ``(b, heads, n, d)`` moved, of the largest number; or 0."""
    moved = (before - after).abs().amax((1, 3)) / before.abs().max().clamp_min(1e-30)
    return torch.where(moved > STILL, moved, 0)


@dataclass(frozen=True, eq=False)
class Moved:
    """The tokens of one sequence, and how far a change of the input moved them.

    Attributes:
        sequence: before the change.
        by: ``(b, n)``.
    """

    sequence: TokenSequence
    by: Tensor

    def of(self, modality: str) -> Tensor:
        """``(b, m)``: of one modality's tokens."""
        return self.by.take_along_dim(places_of(self.sequence, modality), 1)


def moved_by(case: AdapterCase, before: Run, changed: Mapping[str, Any]) -> list[Moved]:
    """How far another batch moves the tokens of every sequence.

    Raises:
        UnmetError: the layout says nothing of a sequence.
    """
    backbone, _ = case.made
    after = forward(backbone, changed)
    found = []
    for one, two in zip(before.sequences, after.sequences, strict=True):
        if one.tokens is None:
            raise UnmetError(f"the layout says nothing of the {one}")
        found.append(Moved(one, movement(one, two)))
    return found
