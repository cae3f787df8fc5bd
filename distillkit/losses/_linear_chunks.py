"""Divergences of logits that are never all there: so many tokens at a time, through the head.

As for attention (docs/explanation/blockwise.md), the gradient by the logits is known in closed
form; here the keys are the rows of the output projection.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _blocks
from ._blocks import Span
from ._blockwise import Kind, buffers_for, compare_in_place, divergence, log_gradients
from ._divergence import log_softmax
from ._halves import DROPPED, LOWEST

MOST_TOKENS, FEWEST_TOKENS = 256, 64
TILE = 8192  # rows of a half precision weight that are widened at a time


class Head(NamedTuple):
    """One model's hidden states and output projection: ``cap(hidden @ weight.T + bias)``."""

    hidden: Tensor  # (n, d)
    weight: Tensor  # (v, d)
    bias: Tensor | None  # (v,)
    softcap: float  # 0: none

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Those that may ask for a gradient."""
        return self.hidden, self.weight, self.bias


class Task(NamedTuple):
    """What is compared, and over which tokens and classes."""

    student: Head
    teacher: Head
    where: Tensor | None  # (v,)
    mask: Tensor | None  # (n,)
    temperature: float
    kind: Kind

    @property
    def heads(self) -> tuple[Head, Head]:
        """Student, teacher."""
        return self.student, self.teacher

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        double = any(x.dtype == torch.float64 for head in self.heads for x in head.tensors[:2])
        return torch.float64 if double else torch.float32


Gradients = list[Tensor | None]
"""By student's hidden states, weight and bias, then by the teacher's."""


def run(
    task: Task, wanted: list[bool], weights: Tensor | None = None, *, slopes: bool
) -> tuple[Tensor, Gradients]:
    """Values ``(n,)``, and with ``slopes`` the wanted gradients for a weight of each token.

    No ``weights`` are 1 for every token, and then the gradients stay in the dtype of the
    computation, to be scaled.
    """
    tokens = _span(task.mask, task.student.hidden.shape[0])
    work = _Chunks(task, tokens, wanted if slopes else [False] * 6, stored=weights is not None)
    value = torch.zeros(
        task.student.hidden.shape[0], dtype=task.dtype, device=task.student.hidden.device
    )
    for start in range(0, work.count, work.step):
        chunk = slice(start, min(work.count, start + work.step))
        index = _at(tokens, chunk)
        counted = None if task.mask is None or work.cut else task.mask[index, None]
        factor = value.new_ones(1, 1) if weights is None else weights[index, None].to(task.dtype)
        if counted is not None:
            factor = torch.where(counted, factor, 0)
        rows = work.compare(index, counted)
        value[index] = (rows if counted is None else torch.where(counted, rows, 0))[:, 0]
        if slopes:
            work.collect(index, factor / task.temperature)
    return value, work.gradients()


class _Chunks:
    """The buffers, and what was gathered in them."""

    def __init__(self, task: Task, tokens: Span, wanted: list[bool], *, stored: bool) -> None:
        self._task, self._wanted, self._stored = task, wanted, stored
        device, n = task.student.hidden.device, task.student.hidden.shape[0]
        self.cut = _blocks.may_look(device)
        self.count = len(range(n)[tokens]) if isinstance(tokens, slice) else tokens.shape[0]
        most = max(FEWEST_TOKENS, min(MOST_TOKENS, -(-self.count // 4)))
        self.step = max(1, -(-self.count // max(1, -(-self.count // most))))  # chunks alike
        keeps = [_kept(task.where, head.bias) for head in task.heads]
        classes = None if None in keeps else keeps[0] | keeps[1]  # type: ignore[operator]
        v = task.student.weight.shape[0]
        self._classes = _span(classes, v) if self.cut else slice(0, v)
        mine, theirs = (None if x is None else x[self._classes] for x in keeps)
        self._keeps = [mine, mine if keeps[0] is keeps[1] else theirs]
        fits = task.kind.name == "kl" or self._keeps[0] is self._keeps[1]
        self._direct = fits and not any(wanted[3:])
        self._unit = 1 / task.temperature
        self._weights = [self._weight(i) for i in (0, 1)]
        self._v = self._weights[0].shape[0]
        if self._v == 0:
            self.count = 0
        size, count = self.step * self._v, buffers_for(task.kind) if self._direct else 2
        self._buffers = [torch.empty(size, dtype=task.dtype, device=device) for _ in range(count)]
        self._capped = [
            torch.empty(size if head.softcap else 0, dtype=task.dtype, device=device)
            for head in task.heads
        ]
        self._slopes: list[Tensor | None] = [None, None]
        shapes = [x if x is None else x.shape for head in task.heads for x in head.tensors]
        self._found: Gradients = [
            torch.zeros(shape, dtype=task.dtype, device=device)
            if some and shape is not None
            else None
            for shape, some in zip(shapes, wanted, strict=True)
        ]

    def compare(self, index: Span, counted: Tensor | None) -> Tensor:
        """Values of a chunk of tokens, (tokens, 1); the slopes stay for :meth:`collect`."""
        buffers = [self._view(x, index) for x in self._buffers]
        s, t = buffers[:2]
        for i, out in enumerate((s, t)):
            self._logits(i, index, counted, out)
        lacking = self._lacking()
        if self._direct:
            self._slopes = [s, None]
            rows = compare_in_place(self._task.kind, buffers, lacking, slopes=any(self._wanted))
        else:
            logs = [log_softmax(x, keep, 1.0) for x, keep in zip((s, t), self._keeps, strict=True)]
            log_q, log_p = logs
            rows = divergence(self._task.kind, log_q, log_p)[:, None]
            if any(self._wanted):
                found = log_gradients(self._task.kind, log_q, log_p, rows)
                self._slopes = [
                    x - log.exp() * x.sum(-1, keepdim=True)
                    for x, log in zip(found, logs, strict=True)
                ]
        for i, head in enumerate(self._task.heads):
            slope = self._slopes[i]
            if head.softcap and slope is not None:
                slope.mul_(1 - self._view(self._capped[i], index).square())
        return rows

    def collect(self, index: Span, weights: Tensor) -> None:
        """Add a chunk's share of the gradients, ``weights`` (tokens or 1, 1) times its slopes."""
        for i in (0, 1):
            slope, asked = self._slopes[i], self._wanted[3 * i : 3 * i + 3]
            if slope is None or not any(asked):
                continue
            hidden, weight, bias = self._found[3 * i : 3 * i + 3]
            own = self._hidden(i, index, weights != 0)
            if hidden is not None:
                hidden[index] = self._times_weight(slope, i).mul_(weights)
            weighted = own * weights
            if weight is not None:
                self._add(weight, slope, weighted)
            if bias is not None:
                bias[self._classes] += (slope * weights).sum(0)

    def gradients(self) -> Gradients:
        """All that was gathered."""
        if not self._stored:
            return self._found
        tensors = [x for head in self._task.heads for x in head.tensors]
        return [
            x if x is None or like is None else x.to(like.dtype)
            for x, like in zip(self._found, tensors, strict=True)
        ]

    def _view(self, flat: Tensor, index: Span) -> Tensor:
        rows = index.stop - index.start if isinstance(index, slice) else index.shape[0]
        return flat[: rows * self._v].view(rows, self._v)

    def _weight(self, i: int) -> Tensor:
        """The classes' rows of a projection; where classes are left out, what they held is not."""
        weight = self._task.heads[i].weight[self._classes]
        keep = self._keeps[i]
        if keep is None or (self.cut and bool(keep.all())):
            return weight
        return torch.where(keep[:, None], weight, 0)

    def _hidden(self, i: int, index: Span, counted: Tensor | None) -> Tensor:
        hidden = self._task.heads[i].hidden[index].to(self._task.dtype)
        return hidden if counted is None or self.cut else torch.where(counted, hidden, 0)

    def _logits(self, i: int, index: Span, counted: Tensor | None, out: Tensor) -> None:
        head, unit = self._task.heads[i], self._unit
        hidden, weight = self._hidden(i, index, counted), self._weights[i]
        alpha = 1.0 if head.softcap else unit
        for tile in self._tiles(weight):
            part = weight[tile].to(out.dtype)
            columns = out[:, tile]
            torch.addmm(columns, hidden, part.mT, beta=0, alpha=alpha, out=columns)
        keep = self._keeps[i]
        if head.bias is not None:
            bias = head.bias[self._classes].to(out.dtype) * alpha
            out += bias if keep is None else torch.where(keep, bias, 0)
        if head.softcap:
            tanh = torch.tanh(out.mul_(1 / head.softcap), out=self._view(self._capped[i], index))
            torch.mul(tanh, head.softcap * unit, out=out)
        if keep is not None and self._direct:
            out.clamp_min_(LOWEST).masked_fill_(~keep, DROPPED)

    def _times_weight(self, slope: Tensor, i: int) -> Tensor:
        weight = self._weights[i]
        if weight.dtype == slope.dtype:
            return slope @ weight
        total = slope.new_zeros(slope.shape[0], weight.shape[1])
        for tile in self._tiles(weight):
            total.addmm_(slope[:, tile], weight[tile].to(slope.dtype))
        return total

    def _add(self, total: Tensor, slope: Tensor, weighted: Tensor) -> None:
        if isinstance(self._classes, slice):
            total[self._classes].addmm_(slope.mT, weighted)
        else:
            total.index_add_(0, self._classes, slope.mT @ weighted)

    def _tiles(self, weight: Tensor) -> list[slice]:
        if weight.dtype == self._task.dtype:
            return [slice(0, self._v)]
        return [slice(c, min(self._v, c + TILE)) for c in range(0, self._v, TILE)]

    def _lacking(self) -> Tensor | None:
        """Whether the teacher keeps a class that the student drops: the same for every token."""
        student, teacher = self._keeps
        if student is None or student is teacher:
            return None
        return (~student if teacher is None else teacher & ~student).any()[None, None]


def scale(upstream: Tensor, mask: Tensor | None, gradients: Gradients) -> bool:
    """Turn gradients for equal token weights into those for ``upstream``, in place.

    False where the weights differ: then only those by the hidden states, which are sums over no
    tokens, are made right, and what is wanted of the others is to be computed again.
    """
    hidden, *summed = gradients
    if hidden is not None:
        hidden.mul_(upstream[:, None] if mask is None else torch.where(mask, upstream, 0)[:, None])
    sums = [x for x in summed if x is not None]
    kept = upstream if mask is None else upstream[mask]
    if not sums or not kept.numel():
        return True
    least, most = kept.aminmax()
    if not bool(least == most):
        return False
    for x in sums:
        x.mul_(least)
    return True


def _kept(where: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """The classes that a side has: a bias of -inf bans one."""
    if bias is None:
        return where
    kept = bias > -torch.inf
    return kept if where is None else kept & where


def _span(kept: Tensor | None, n: int) -> Span:
    """The kept positions; on an accelerator all, so as not to wait for it."""
    if kept is None or not _blocks.may_look(kept.device):
        return slice(0, n)
    index = kept.nonzero()[:, 0]
    if not index.numel():
        return slice(0, 0)
    low, high = int(index[0]), int(index[-1]) + 1
    return slice(low, high) if high - low == index.numel() else index


def _at(span: Span, part: slice) -> Span:
    if isinstance(span, slice):
        return slice(span.start + part.start, span.start + part.stop)
    return span[part]
