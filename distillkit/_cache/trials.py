"""What a term's loss reads of a signal, which nothing says: it is tried."""

from __future__ import annotations

import torch
from torch import Tensor

from .._attention import Attention
from .._backbone.batch import SideOfBatch
from .._objective.term import Term
from .._plugins.registry import lookup
from .._plugins.specs import AlignerSpec
from ..errors import DistillKitError


def reads_vectors(term: Term, attention: Attention, batch: SideOfBatch) -> bool:
    """Whether a term reads more of an attention than its probabilities: its loss is tried.

    An aligner cannot be, without a student: those of distillkit are content with a map, and any
    other one may ask for more.
    """
    factories = [str(lookup(AlignerSpec, name).factory) for name in term.aligners.names]
    if any(not factory.startswith("distillkit.") for factory in factories):
        return True
    plain = Attention.from_scores(attention.scores(), rows=attention.rows)
    sides = [plain] * len(term.on)
    try:
        term.values(sides, sides, batch)
    except DistillKitError:
        return True
    return False


def compares_probabilities(term: Term, logits: Tensor, batch: SideOfBatch) -> bool:
    """Whether a term's loss reads nothing but the probabilities of logits: it is tried."""
    if term.aligners:  # what they make of logits is not known
        return False
    student = logits.float().flip(-1) / 2
    shift = torch.arange(len(logits), device=logits.device).float() + 1
    others = logits.float() + shift.reshape(-1, *[1] * (logits.ndim - 1))
    try:
        values = [
            term.values([student] * len(term.on), [one] * len(term.on), batch)
            for one in (logits.float(), others)
        ]
    except DistillKitError:
        return False
    return torch.allclose(values[0], values[1], rtol=1e-3, atol=1e-4, equal_nan=True)
