"""Divergences of two attentions and their gradients, one block of scores at a time.

The gradient of a divergence of softmaxes with respect to the scores is known in closed form, so a
block's value and its share of the queries' and keys' gradients are made while the block is in
cache, and no map of queries x keys is ever whole. docs/explanation/blockwise.md derives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import _blocks
from ._blocks import Block, Example, Pair, at, blocks, examples
from ._divergence import forward_kl, log_softmax, mixture_divergence
from ._halves import Gradient, Half, example_of, of_heads

NARROW = 16  # keys: one vector register


class Kind(NamedTuple):
    """Which divergence: KL(teacher || student), its reverse, or the Jensen-Shannon divergence."""

    name: Literal["kl", "reverse", "jsd"]
    beta: float = 0.5


class Wanted(NamedTuple):
    """Whose gradient: queries and keys of the student, queries and keys of the teacher."""

    student: tuple[bool, bool] = (False, False)
    teacher: tuple[bool, bool] = (False, False)


class Forward(NamedTuple):
    """Values ``(b, h or 1, q)``, and what was asked to be kept for the backward."""

    value: Tensor
    maps: list[Tensor]
    gradients: list[Tensor]


class _Compared(NamedTuple):
    """One block: a value for each row, each side's slopes of the scores (or none)."""

    rows: Tensor
    slopes: tuple[Tensor | None, Tensor | None]


def forward(pair: Pair, kind: Kind, wanted: Wanted, keep: Literal["", "maps", "guess"]) -> Forward:
    """Every row's value.

    ``keep="maps"`` also returns the slopes of the scores; ``"guess"`` the student's gradients for
    a weight of 1 in every row, in the dtype of the computation, which :func:`scale` settles.
    """
    parts = examples(pair)
    todo = list(blocks(pair, parts))
    value = torch.zeros(pair.value_shape, dtype=pair.dtype, device=pair.student.query.device)
    engine = _Engine(pair, kind, wanted, todo)
    maps = [
        value.new_empty(
            sum(_of_side(pair, block, i).size for block in todo)
            if any(some) and keep == "maps"
            else 0
        )
        for i, some in enumerate(wanted)
    ]
    asked = wanted.student if keep == "guess" else (False, False)
    made = Gradient(pair.student, parts, asked, (pair.dtype, pair.dtype))
    places = [0, 0]
    for block, halves in _walk(pair, todo):
        room = [_room(pair, x, block, i, places) for i, x in enumerate(maps)]
        compared = engine.compare(block, halves, room, slopes=bool(keep))
        rows, counted = compared.rows, _counted(block)
        if counted is not None:
            rows = torch.where(counted, rows, 0)
        target = of_heads(example_of(value, block.example.number), block.heads)
        target[:, at(block.example.rows, block.rows)] = rows[..., 0]
        if keep == "guess" and compared.slopes[0] is not None:
            factor = pair.student.factor
            weights = (
                factor if counted is None else torch.where(counted, factor, rows.new_zeros(()))
            )
            made.add(halves[0], block, compared.slopes[0], weights)
    made.close()
    return Forward(value, maps, [x for x in (made.query, made.key) if x is not None])


def backward(
    upstream: Tensor,
    pair: Pair,
    kind: Kind,
    wanted: Wanted,
    maps: Sequence[Tensor] = (),
    into: Sequence[Tensor | None] = (None, None),
) -> list[Tensor | None]:
    """The gradients to student's query and key, teacher's query and key; None where unwanted.

    ``maps`` are what :func:`forward` kept; empty ones are computed again. The student's gradients
    are written ``into`` tensors of the dtype of the computation, where they are given.
    """
    parts = examples(pair)
    todo = list(blocks(pair, parts))
    saved = any(x.numel() for x in maps)
    engine = _Engine(pair, kind, wanted, [] if saved else todo)
    given = any(x is not None for x in into)
    stored = [pair.dtype if given else side.query.dtype for side in pair.sides]
    made = [
        Gradient(pair.student, parts, wanted.student, (stored[0], pair.dtype), into),
        Gradient(pair.teacher, parts, wanted.teacher, (stored[1], pair.dtype)),
    ]
    weights = upstream.to(pair.dtype)[..., None]
    places = [0, 0]
    for block, halves in _walk(pair, todo):
        if saved:
            slopes: Sequence[Tensor | None] = [
                _room(pair, x, block, i, places) for i, x in enumerate(maps)
            ]
        else:
            slopes = engine.compare(block, halves, [None, None], slopes=True).slopes
        weight = of_heads(example_of(weights, block.example.number), block.heads)
        weight = weight[:, at(block.example.rows, block.rows)]
        counted = _counted(block)
        if counted is not None:
            weight = torch.where(counted, weight, 0)
        for i, (half, slope) in enumerate(zip(halves, slopes, strict=True)):
            if slope is not None and any(wanted[i]):
                own = _of_side(pair, block, i)
                made[i].add(half, own, slope, weight * pair.sides[i].factor)
    for one in made:
        one.close()
    return [made[0].query, made[0].key, made[1].query, made[1].key]


def scale(upstream: Tensor, pair: Pair, query: Tensor | None, key: Tensor | None) -> bool:
    """Turn gradients guessed for equal weights into those for ``upstream``, in place.

    Rows of queries scale one by one; a key's gradient sums over rows, so it scales only where the
    rows of all heads that read it weigh the same. False, with nothing changed, where they do not.
    """
    weights = upstream.to(pair.dtype)
    if not weights.numel():
        return True
    if key is not None:
        counted = pair.counted()
        b, h, _ = weights.shape
        grouped = weights.reshape(b, min(h, key.shape[1]), -1)  # averaged heads have one weight
        low = high = grouped
        if counted is not None:
            kept = counted.expand(weights.shape).reshape(grouped.shape)
            low, high = (torch.where(kept, grouped, x) for x in (torch.inf, -torch.inf))
        least, most = low.amin(-1), high.amax(-1)
        empty = least > most  # no row counts: nothing was added
        if not bool(((least == most) | empty).all()):
            return False
        key.mul_(torch.where(empty, 0, least)[..., None, None])
    if query is not None:
        query.mul_(weights[..., None])
    return True


class _Engine:
    """Compares blocks: in three buffers where that is enough, with all logs otherwise."""

    def __init__(self, pair: Pair, kind: Kind, wanted: Wanted, todo: Sequence[Block]) -> None:
        self._kind, self._wanted, self._mean = kind, wanted, pair.mean
        self._pair = pair
        self._same = _keep_the_same(pair)
        # a mixture has no use for rows that one side lacks entirely: logs sort that out
        fits = kind.name == "kl" or (kind.name == "jsd" and self._same)
        self._direct = fits and not pair.mean and not any(wanted.teacher)
        largest = max([0, *(block.size for block in todo)])
        device = pair.student.query.device
        self._buffers = [
            torch.empty(largest if self._direct else 0, dtype=pair.dtype, device=device)
            for _ in range(buffers_for(kind))
        ]

    def compare(
        self,
        block: Block,
        halves: tuple[Half, Half],
        room: Sequence[Tensor | None],
        *,
        slopes: bool,
    ) -> _Compared:
        """One block; the slopes are written into ``room`` where it is given."""
        if self._direct:
            return self._compare_directly(block, halves, room[0], slopes=slopes)
        return self._compare_logs(block, halves, room, slopes=slopes)

    def _compare_directly(
        self, block: Block, halves: tuple[Half, Half], room: Tensor | None, *, slopes: bool
    ) -> _Compared:
        student, teacher = halves
        buffers = [x[: block.size].view(block.shape) for x in self._buffers]
        if room is not None:
            buffers[0] = room
        s, t = buffers[:2]
        for half, scores in ((student, s), (teacher, t)):
            half.products(block, out=scores)
            added = half.added(block)
            if added is not None:
                scores += added
        lacking = None if self._same else _lacking(block, teacher, student)
        rows = compare_in_place(self._kind, buffers, lacking, slopes=slopes)
        return _Compared(rows, (s if slopes else None, None))

    def _compare_logs(
        self,
        block: Block,
        halves: tuple[Half, Half],
        room: Sequence[Tensor | None],
        *,
        slopes: bool,
    ) -> _Compared:
        logs = []
        for i, half in enumerate(halves):
            own = _of_side(self._pair, block, i)
            scores = torch.empty(own.shape, dtype=self._pair.dtype, device=half.device)
            half.products(own, out=scores)
            bias, keep = half.bias(own), half.keep(own)
            if bias is not None:
                scores += bias
            logs.append(log_softmax(scores, keep, 1.0))
        log_q, log_p = (mean_over_heads(x) if self._mean else x for x in logs)
        rows = divergence(self._kind, log_q, log_p)[..., None]
        if not slopes:
            return _Compared(rows, (None, None))
        found: list[Tensor | None] = [None, None]
        for i, gradient in enumerate(log_gradients(self._kind, log_q, log_p, rows)):
            if not any(self._wanted[i]):
                continue
            slope = _through_softmax(gradient, logs[i], (log_q, log_p)[i])
            target = room[i]
            found[i] = slope if target is None else target.copy_(slope)
        return _Compared(rows, (found[0], found[1]))


def compare_in_place(
    kind: Kind, buffers: Sequence[Tensor], lacking: Tensor | None, *, slopes: bool
) -> Tensor:
    """KL or Jensen-Shannon divergence over the last axis, in the buffers of :func:`buffers_for`.

    The first holds the student's scores and becomes the slopes; the second holds the teacher's,
    and all others are used up. Rows that are ``lacking`` have no finite value. Returns (..., 1).
    """
    s, t, p, *more = buffers
    for scores in (t, s):
        if scores.shape[-1] < NARROW:  # rows that torch's own does one number at a time
            scores -= scores.amax(-1, keepdim=True)
            scores -= torch.exp(scores, out=p).sum(-1, keepdim=True).log_()
        else:
            torch.log_softmax(scores, -1, out=scores)
    torch.exp(t, out=p)
    if kind.name == "jsd":
        return _mix_in_place(s, t, p, *more, beta=kind.beta, slopes=slopes)
    t -= s
    rows = t.mul_(p).sum(-1, keepdim=True)
    if lacking is not None:
        rows = torch.where(lacking, torch.inf, rows)
    if slopes:
        s.exp_().sub_(p)
        if lacking is not None:
            s.masked_fill_(lacking, 0)
    return rows


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


def buffers_for(kind: Kind) -> int:
    """How many buffers :func:`compare_in_place` takes."""
    return 5 if kind.name == "jsd" else 3


def divergence(kind: Kind, log_q: Tensor, log_p: Tensor) -> Tensor:
    """The divergence of student's q and teacher's p from their log-probabilities."""
    if kind.name == "kl":
        return forward_kl(log_q, log_p)
    if kind.name == "reverse":
        return forward_kl(log_p, log_q)
    return mixture_divergence(log_q, log_p, kind.beta)


def mean_over_heads(log_p: Tensor) -> Tensor:
    """The log of probabilities averaged over the third axis from the end, kept with size 1."""
    # a key that every head drops stays at -inf and must not meet logsumexp
    kept = (log_p > -torch.inf).any(-3, keepdim=True)
    mean = torch.where(kept, log_p, 0).logsumexp(-3, keepdim=True) - math.log(log_p.shape[-3])
    return torch.where(kept, mean, -torch.inf)


def log_gradients(kind: Kind, log_q: Tensor, log_p: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence's derivatives by log q and log p, up to multiples of q and p."""
    if kind.name == "reverse":
        of_p, of_q = log_gradients(Kind("kl"), log_p, log_q, rows)
        return of_q, of_p
    in_q, in_p = log_q > -torch.inf, log_p > -torch.inf
    q, p = log_q.exp(), log_p.exp()
    if kind.name == "kl":
        finite = rows < torch.inf  # a row at infinity has no gradient
        ratio = torch.where(in_p & in_q, log_p - log_q, 0)
        return torch.where(finite, -p, 0), torch.where(finite, p * ratio, 0)
    weighted = torch.stack([log_p + math.log(kind.beta), log_q + math.log1p(-kind.beta)])
    log_m = torch.where(in_p | in_q, weighted, 0).logsumexp(0)
    of_q = (1 - kind.beta) * q * torch.where(in_q, log_q - log_m, 0)
    return of_q, kind.beta * p * torch.where(in_p, log_p - log_m, 0)


def _through_softmax(gradient: Tensor, logs: Tensor, log_mean: Tensor) -> Tensor:
    """From the derivative by a log-probability, averaged over heads or not, to the scores'."""
    if log_mean is not logs:  # each head answers for its share of the average
        share = torch.where(logs > -torch.inf, (logs - log_mean).exp() / len(logs), 0)
        gradient = gradient * share
    return gradient - logs.exp() * gradient.sum(-1, keepdim=True)


def _walk(pair: Pair, todo: Sequence[Block]) -> Iterator[tuple[Block, tuple[Half, Half]]]:
    part: Example | None = None
    for block in todo:
        if block.example is not part:
            part = block.example
            student, teacher = (
                Half(side, part, used, pair.dtype)
                for side, used in zip(pair.sides, part.used, strict=True)
            )
        yield block, (student, teacher)


def _of_side(pair: Pair, block: Block, side: int) -> Block:
    """The block with a side's own heads, which differ only where they are averaged."""
    if not pair.mean:
        return block
    return block._replace(heads=slice(0, pair.sides[side].query.shape[1]))


def _room(pair: Pair, flat: Tensor, block: Block, side: int, places: list[int]) -> Tensor | None:
    """The next block's place in a map that is kept as blocks, one after another."""
    if not flat.numel():
        return None
    own = _of_side(pair, block, side)
    start = places[side]
    places[side] += own.size
    return flat[start : places[side]].view(own.shape)


def _counted(block: Block) -> Tensor | None:
    counted = block.example.counted
    return None if counted is None else of_heads(counted, block.heads)[:, block.rows]


def _lacking(block: Block, teacher: Half, student: Half) -> Tensor | None:
    """The rows whose teacher keeps a key that the student drops."""
    kept, other = teacher.keep(block), student.keep(block)
    if other is None:
        return None
    return (~other if kept is None else kept & ~other).any(-1, keepdim=True)


def _keep_the_same(pair: Pair) -> bool:
    """Whether both sides surely keep the same entries; without looking, on an accelerator."""
    one, other = (side.keep for side in pair.sides)
    if one.causal != other.causal:
        return False
    for mine, theirs in ((one.mask, other.mask), (one.bias, other.bias)):
        if mine is theirs:
            continue
        if mine is None or theirs is None or mine.is_floating_point():
            return False
        if not _blocks.may_look(mine.device) or not torch.equal(mine, theirs):
            return False
    return True
