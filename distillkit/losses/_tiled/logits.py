"""Divergences of logits and their gradients: so many tokens at a time, through the whole head.

The same computation as for attention (docs/explanation/blockwise.md), where tokens are the queries
and the rows of the output projection are the keys. A chunk of tokens meets all classes, so that a
chunk is a tile with whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .._divergence import log_softmax
from . import tiling
from .comparison import (
    NONE_WANTED,
    ForBackward,
    Forward,
    Gradients,
    Kind,
    Leaves,
    Pair,
    Side,
    Sides,
    Wanted,
)
from .divergences import (
    DROPPED,
    LOWEST,
    Compared,
    buffers_for,
    can_compare_in_place,
    compare_in_place,
    compare_logs,
    lacking_rows,
)
from .gradients import common_weights
from .tiling import Span, even_size, kept_span, span_length, subspan

MOST_TOKENS, FEWEST_TOKENS = 256, 64
TILE = 8192  # rows of a half precision weight that are widened at a time

NO_SECOND_DERIVATIVE = (
    "a divergence through the output projection has no second derivative: its gradient is "
    "computed in closed form; kl_divergence of logits can be differentiated as often as "
    "you like"
)


CompareChunk = Callable[[Kind, Sides[Tensor], Sides[Tensor | None], Sides[bool]], Compared]
"""What compares a chunk of logits at once: kind, logits (n, v), classes kept, sides wanted."""


def forward(
    pair: Pair, wanted: Wanted, keep: ForBackward, compare: CompareChunk | None = None
) -> Forward:
    """Every token's value, and for ``keep="guess"`` the gradients for a weight of 1 in each.

    Maps of tokens x classes are never kept. ``compare`` is used instead of torch's operations.
    """
    asked = wanted if keep == "guess" else Sides(NONE_WANTED, NONE_WANTED)
    chunks = _Chunks(pair, asked, compare=compare)
    value = chunks.run(None)
    maps = Sides(value.new_empty(0), value.new_empty(0))
    return Forward(value, maps, chunks.projections.student.gradients)


def backward(
    upstream: Tensor,
    pair: Pair,
    wanted: Wanted,
    maps: Sides[Tensor] | None = None,  # noqa: ARG001 (the signature of every loop)
    into: Gradients | None = None,
    compare: CompareChunk | None = None,
) -> Sides[Gradients]:
    """The gradients to both sides; None where unwanted.

    The student's are written ``into`` tensors of the computation's dtype, where they are given.
    """
    chunks = _Chunks(pair, wanted, into, compare)
    chunks.run(upstream)
    student, teacher = chunks.projections
    if into is not None:
        return Sides(student.gradients, teacher.rounded_gradients())
    return Sides(student.rounded_gradients(), teacher.rounded_gradients())


def scale_guess(upstream: Tensor, pair: Pair, guess: Gradients) -> Leaves[bool]:
    """Turn gradients guessed for equal weights into those for ``upstream``, in place.

    The gradient by hidden states sums over no tokens and is always made right. Returns which of
    the others have to be computed again, because tokens weigh differently.
    """
    weights = upstream.to(pair.dtype)
    mask = pair.rows
    if guess.query is not None:
        kept = weights if mask is None else torch.where(mask, weights, 0)
        guess.query.mul_(kept[:, None])
    sums = [x for x in (guess.key, guess.bias) if x is not None]
    if not sums or not weights.numel():
        return NONE_WANTED
    common = common_weights(weights, mask)
    if common is None:
        return Leaves(query=False, key=guess.key is not None, bias=guess.bias is not None)
    for x in sums:
        x.mul_(common)
    return NONE_WANTED


class _Chunks:
    """Both projections, the chunks of tokens, and the buffers that every chunk is computed in."""

    def __init__(
        self,
        pair: Pair,
        wanted: Wanted,
        into: Gradients | None = None,
        compare: CompareChunk | None = None,
    ) -> None:
        self._pair = pair
        self._compare_at_once = compare
        self._wanted = Sides(*map(any, wanted))
        self._device = pair.student.query.device
        self._dtype = pair.dtype
        self._reads = tiling.can_sync(self._device)
        self._classes, self._keeps = self._cut_classes()
        student, teacher = self._keeps
        self.projections = Sides(
            _Projection(pair.student, student, self._classes, pair.dtype, wanted.student, into),
            _Projection(pair.teacher, teacher, self._classes, pair.dtype, wanted.teacher),
        )
        self._width = self.projections.student.classes
        n = pair.student.query.shape[0]
        self._rows = self._rows_that_count()
        self._tokens = kept_span(self._rows if self._reads else None, n)
        # without a class that counts, there is nothing to compute
        self._count = span_length(self._tokens, n) if self._width else 0
        self._step = _chunk_size(self._count)
        fits = can_compare_in_place(pair.kind, keep_the_same=student is teacher)
        self._in_place = compare is None and fits and not self._wanted.teacher
        buffers = buffers_for(pair.kind) if self._in_place else 2
        self._buffers = [self._buffer() for _ in range(buffers)]
        # the derivative of a soft cap is a function of its tanh, which stays until then
        self._capped = Sides(*(self._buffer() if side.softcap else None for side in pair.sides))

    def run(self, upstream: Tensor | None) -> Tensor:
        """The value of every token, (n,); the gradients are summed in the projections.

        ``upstream`` is the weight of each token, None for 1.
        """
        mask = self._rows
        value = torch.zeros(self._pair.value_shape, dtype=self._dtype, device=self._device)
        for index in self._indices():
            counted = None if mask is None or self._reads else mask[index, None]
            if upstream is None:
                weights = value.new_ones(1, 1)
            else:
                weights = upstream[index, None].to(self._dtype)
            if counted is not None:
                weights = torch.where(counted, weights, 0)
            hidden = Sides(*(self._hidden(side, index, counted) for side in self._pair.sides))
            rows, slopes = self._compare(hidden)
            value[index] = (rows if counted is None else torch.where(counted, rows, 0))[:, 0]
            each = zip(self._pair.sides, self.projections, slopes, strict=True)
            for side, projection, slope in each:
                if slope is not None:
                    own = self._hidden(side, index, weights != 0)
                    projection.add(index, own, slope, weights / side.temperature)
        return value

    def _cut_classes(self) -> tuple[Span, Sides[Tensor | None]]:
        """The classes that a side keeps, which alone are computed, and which of them each keeps.

        Where both sides keep the same classes, theirs is one tensor.
        """
        v = self._pair.student.key.shape[0]
        student, teacher = (_kept_classes(self._pair.keys, side.bias) for side in self._pair.sides)
        classes: Span = slice(0, v)
        if self._reads and student is not None and teacher is not None:
            classes = kept_span(student | teacher, v)
        mine = None if student is None else student[classes]
        if teacher is student:
            return classes, Sides(mine, mine)
        return classes, Sides(mine, None if teacher is None else teacher[classes])

    def _rows_that_count(self) -> Tensor | None:
        """The tokens that count; None: all. None does where the teacher keeps no class.

        Its dropped scores would be a uniform distribution, which is compared like any other.
        """
        rows, keep = self._pair.rows, self._keeps.teacher
        if keep is None or self._pair.kind.name != "kl":
            return rows
        some = keep.any().expand(self._pair.student.query.shape[0])
        return some if rows is None else rows & some

    def _indices(self) -> Iterator[Span]:
        """The tokens of every chunk."""
        for start in range(0, self._count, self._step):
            yield subspan(self._tokens, slice(start, min(self._count, start + self._step)))

    def _buffer(self) -> Tensor:
        return torch.empty(self._step * self._width, dtype=self._dtype, device=self._device)

    def _hidden(self, side: Side, index: Span, counted: Tensor | None) -> Tensor:
        """The hidden states of a chunk; 0 where a token does not count, whatever it held."""
        hidden = side.query[index].to(self._dtype)
        return hidden if counted is None or self._reads else torch.where(counted, hidden, 0)

    def _compare(self, hidden: Sides[Tensor]) -> Compared:
        """Values and slopes of a chunk of tokens."""
        n = len(hidden.student)
        buffers = [self._of_chunk(x, n) for x in self._buffers]
        capped = Sides(*(None if x is None else self._of_chunk(x, n) for x in self._capped))
        logits = Sides(*buffers[:2])
        for projection, own, cap, out in zip(self.projections, hidden, capped, logits, strict=True):
            projection.write_logits(own, out, cap, drop=self._in_place)
        if self._compare_at_once is not None:
            compared = self._compare_at_once(self._pair.kind, logits, self._keeps, self._wanted)
        elif self._in_place:
            lacking = lacking_rows(Sides(*(None if x is None else x[None] for x in self._keeps)))
            wanted = any(self._wanted)
            compared = compare_in_place(self._pair.kind, buffers, lacking, slopes=wanted)
        else:
            kept = zip(logits, self._keeps, strict=True)
            logs = Sides(*(log_softmax(x, keep, 1.0) for x, keep in kept))
            compared = compare_logs(self._pair.kind, logs, self._wanted)
        for slope, cap in zip(compared.slopes, capped, strict=True):
            if slope is not None and cap is not None:
                slope.mul_(1 - cap.square())
        return compared

    def _of_chunk(self, flat: Tensor, tokens: int) -> Tensor:
        return flat[: tokens * self._width].view(tokens, self._width)


class _Projection:
    """One side's output projection, cut to the classes that are computed, and its gradients.

    Args:
        side: the whole side.
        keep: which of the computed classes it keeps; None: all.
        classes: the computed classes.
        dtype: the dtype of the computation.
        wanted: whose gradient is asked for.
        into: tensors to sum the gradients in, instead of new ones.
    """

    def __init__(
        self,
        side: Side,
        keep: Tensor | None,
        classes: Span,
        dtype: torch.dtype,
        wanted: Leaves[bool],
        into: Gradients | None = None,
    ) -> None:
        self._side = side
        self._keep = keep
        self._span = classes
        self._dtype = dtype
        self._weight = self._kept_weight()
        self.classes = self._weight.shape[0]
        leaves = zip(side.leaves, wanted, into or (None, None, None), strict=True)
        self.gradients = Leaves(
            *(self._zeros(x, given) if asked else None for x, asked, given in leaves)
        )

    def write_logits(
        self, hidden: Tensor, out: Tensor, capped: Tensor | None, *, drop: bool
    ) -> None:
        """The softened logits of some tokens into ``out``, (tokens, classes).

        Under a soft cap its tanh goes into ``capped``. ``drop`` puts :data:`DROPPED` where a class
        is not kept.
        """
        side, keep = self._side, self._keep
        alpha = 1.0 if capped is not None else side.factor
        for tile in self._tiles():
            weight = self._weight[tile].to(out.dtype)
            columns = out[:, tile]
            torch.addmm(columns, hidden, weight.mT, beta=0, alpha=alpha, out=columns)
        if side.bias is not None:
            bias = side.bias[self._span].to(out.dtype) * alpha
            out += bias if keep is None else torch.where(keep, bias, 0)
        if capped is not None:
            tanh = torch.tanh(out.mul_(1 / side.softcap), out=capped)
            torch.mul(tanh, side.softcap * side.factor, out=out)
        if keep is not None and drop:
            out.clamp_min_(LOWEST).masked_fill_(~keep, DROPPED)

    def add(self, index: Span, hidden: Tensor, slope: Tensor, weights: Tensor) -> None:
        """A chunk's share of the gradients: its slopes times a weight for each token, (., 1)."""
        gradients = self.gradients
        if gradients.query is not None:
            gradients.query[index] = self._times_weight(slope).mul_(weights)
        if gradients.key is not None:
            self._add_to_key(gradients.key, slope, hidden * weights)
        if gradients.bias is not None:
            gradients.bias[self._span] += (slope * weights).sum(0)

    def rounded_gradients(self) -> Gradients:
        """The gradients in the dtypes of what they are of."""
        leaves = zip(self.gradients, self._side.leaves, strict=True)
        return Leaves(
            *(None if x is None or like is None else x.to(like.dtype) for x, like in leaves)
        )

    def _kept_weight(self) -> Tensor:
        """The classes' rows of the projection, 0 for a class that is not kept."""
        weight, keep = self._side.key[self._span], self._keep
        if keep is None or (tiling.can_sync(keep.device) and bool(keep.all())):
            return weight
        return torch.where(keep[:, None], weight, 0)

    def _zeros(self, like: Tensor | None, into: Tensor | None) -> Tensor | None:
        if like is None:
            return None
        if into is not None:
            return into.zero_()
        return torch.zeros(like.shape, dtype=self._dtype, device=like.device)

    def _times_weight(self, slope: Tensor) -> Tensor:
        if self._weight.dtype == slope.dtype:
            return slope @ self._weight
        total = slope.new_zeros(slope.shape[0], self._weight.shape[1])
        for tile in self._tiles():
            total.addmm_(slope[:, tile], self._weight[tile].to(slope.dtype))
        return total

    def _add_to_key(self, total: Tensor, slope: Tensor, weighted: Tensor) -> None:
        if isinstance(self._span, slice):
            total[self._span].addmm_(slope.mT, weighted)
        else:
            total.index_add_(0, self._span, slope.mT @ weighted)

    def _tiles(self) -> list[slice]:
        """The classes, so many at a time that a weight of half precision is widened in pieces."""
        if self._weight.dtype == self._dtype:
            return [slice(0, self.classes)]
        return [slice(c, min(self.classes, c + TILE)) for c in range(0, self.classes, TILE)]


def _chunk_size(count: int) -> int:
    """How many tokens are computed at a time: a quarter of them within bounds, all chunks alike."""
    most = max(FEWEST_TOKENS, min(MOST_TOKENS, -(-count // 4)))
    return even_size(count, most) if count else 1


def _kept_classes(exist: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """The classes that a side has: a bias of -inf bans one."""
    if bias is None:
        return exist
    kept = bias > -torch.inf
    return kept if exist is None else kept & exist
