"""A row's divergence and its slopes, from scores or log-probabilities that are at hand.

The slope of a score is the derivative of its row's divergence by that score. For a divergence of
softmaxes it is known in closed form (docs/explanation/blockwise.md), so it is made while the scores
are in cache, and nothing of them is kept for later.

There are two ways. Three buffers, changed in place, are enough for most; logs of everything, out of
place, are for what the first cannot do (a teacher that trains, averages over heads, -inf).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._divergence import forward_kl, mixture_divergence
from .comparison import Kind, Sides

NARROW = 16  # keys: one vector register

DROPPED = -1e38  # for a dropped score: its power is 0, and no difference of two is NaN
LOWEST = -1e37  # no bias of a kept score goes below


class Compared(NamedTuple):
    """The rows of a tile: their values, (..., 1), and each side's slopes, where they are wanted."""

    rows: Tensor
    slopes: Sides[Tensor | None]


def can_compare_in_place(kind: Kind, *, keep_the_same: bool) -> bool:
    """Whether :func:`compare_in_place` knows the divergence of such sides.

    A mixture has no use for rows that one side lacks entirely: the logs sort that out.
    """
    return kind.name == "kl" or (kind.name == "jsd" and keep_the_same)


def buffers_for(kind: Kind) -> int:
    """How many buffers :func:`compare_in_place` takes."""
    return 5 if kind.name == "jsd" else 3


def compare_in_place(
    kind: Kind, buffers: Sequence[Tensor], lacking: Tensor | None, *, slopes: bool
) -> Compared:
    """KL or Jensen-Shannon divergence over the last axis, in the buffers of :func:`buffers_for`.

    The first holds the student's scores and becomes the slopes; the second holds the teacher's,
    and all others are used up. Rows that are ``lacking`` have no finite value.
    """
    s, t, p, *more = buffers
    for scores in (t, s):
        if scores.shape[-1] < NARROW:  # torch's own goes through such rows number by number
            scores -= scores.amax(-1, keepdim=True)
            scores -= torch.exp(scores, out=p).sum(-1, keepdim=True).log_()
        else:
            torch.log_softmax(scores, -1, out=scores)
    torch.exp(t, out=p)
    if kind.name == "jsd":
        rows = _mix_in_place(s, t, p, *more, beta=kind.beta, slopes=slopes)
    else:
        t -= s
        rows = t.mul_(p).sum(-1, keepdim=True)
        if slopes:
            s.exp_().sub_(p)
        if lacking is not None:
            rows = torch.where(lacking, torch.inf, rows)
            s.masked_fill_(lacking, 0)
    return Compared(rows, Sides(s if slopes else None, None))


def _mix_in_place(
    s: Tensor, t: Tensor, p: Tensor, q: Tensor, m: Tensor, *, beta: float, slopes: bool
) -> Tensor:
    torch.exp(s, out=q)
    torch.lerp(q, p, beta, out=m)
    m.clamp_min_(torch.finfo(m.dtype).tiny).log_()  # where both vanish, so does their share
    t -= m
    s -= m
    of_student = s.mul_(q).sum(-1, keepdim=True)
    rows = beta * t.mul_(p).sum(-1, keepdim=True) + (1 - beta) * of_student
    if slopes:
        s.sub_(q.mul_(of_student)).mul_(1 - beta)
    return rows.clamp_min_(0)  # rounding alone is below


def compare_logs(
    kind: Kind, logs: Sides[Tensor], wanted: Sides[bool], *, mean: bool = False
) -> Compared:
    """Any divergence, from log-probabilities (averaged over heads first, for a ``mean``)."""
    compared = Sides(*map(mean_over_heads, logs)) if mean else logs
    rows = divergence(kind, *compared)[..., None]
    if not any(wanted):
        return Compared(rows, Sides(None, None))
    found = log_gradients(kind, compared, rows)
    sides = zip(wanted, found, logs, compared, strict=True)
    slopes = [_through_softmax(*rest) if asked else None for asked, *rest in sides]
    return Compared(rows, Sides(*slopes))


def divergence(kind: Kind, log_q: Tensor, log_p: Tensor) -> Tensor:
    """The divergence of student's q and teacher's p from their log-probabilities."""
    if kind.name == "kl":
        return forward_kl(log_q, log_p)
    if kind.name == "reverse":
        return forward_kl(log_p, log_q)
    return mixture_divergence(log_q, log_p, kind.beta)


def mean_over_heads(log_p: Tensor) -> Tensor:
    """The log of probabilities averaged over the third axis from the end, kept with size 1."""
    # a key that every head drops stays at -inf and must not meet logsumexp; NaN is not dropped
    kept = (log_p != -torch.inf).any(-3, keepdim=True)
    mean = torch.where(kept, log_p, 0).logsumexp(-3, keepdim=True) - math.log(log_p.shape[-3])
    return torch.where(kept, mean, -torch.inf)


def log_gradients(kind: Kind, logs: Sides[Tensor], rows: Tensor) -> Sides[Tensor]:
    """The divergence's derivatives by log q and log p, up to multiples of q and p."""
    log_q, log_p = logs
    if kind.name == "reverse":
        of_p, of_q = log_gradients(Kind("kl"), Sides(log_p, log_q), rows)
        return Sides(of_q, of_p)
    in_q, in_p = log_q > -torch.inf, log_p > -torch.inf
    q, p = log_q.exp(), log_p.exp()
    if kind.name == "kl":
        finite = rows < torch.inf  # a row at infinity has no gradient
        ratio = torch.where(in_p & in_q, log_p - log_q, 0)
        return Sides(torch.where(finite, -p, 0), torch.where(finite, p * ratio, 0))
    weighted = torch.stack([log_p + math.log(kind.beta), log_q + math.log1p(-kind.beta)])
    log_m = torch.where(in_p | in_q, weighted, 0).logsumexp(0)
    of_q = (1 - kind.beta) * q * torch.where(in_q, log_q - log_m, 0)
    of_p = kind.beta * p * torch.where(in_p, log_p - log_m, 0)
    return Sides(of_q, of_p)


def _through_softmax(gradient: Tensor, logs: Tensor, log_mean: Tensor) -> Tensor:
    """The pullback of log-softmax: from derivatives by log-probabilities to the scores' slopes.

    The derivative of log q_j by score i is 1[i = j] - q_i, so the slope of score i is the
    derivative by log q_i less q_i times the sum of all derivatives. A multiple of q in the
    derivatives cancels. Where the compared rows are averages over heads, each head answers for
    its share of the average first.
    """
    if log_mean is not logs:
        share = torch.where(logs > -torch.inf, (logs - log_mean).exp() / len(logs), 0)
        gradient = gradient * share
    return gradient - logs.exp() * gradient.sum(-1, keepdim=True)


def lacking_rows(keeps: Sides[Tensor | None]) -> Tensor | None:
    """The rows whose teacher keeps an entry that the student drops, (..., 1); None: surely none."""
    student, teacher = keeps
    if student is None or student is teacher:
        return None
    lacking = ~student if teacher is None else teacher & ~student
    return lacking.any(-1, keepdim=True)
