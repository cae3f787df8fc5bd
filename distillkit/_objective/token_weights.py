"""Positions of an example that weigh as much as a signal of the teacher says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._attention import Attention, widen
from .._backbone.signals import Signals
from .._tables import Table, validated
from ..errors import RecipeError, ShapeError, SignalError


class TokenWeights(Table):
    r"""A signal of the teacher by which the positions of an example are weighted.

    .. math:: v'_i = \frac{m\, w_i}{\sum_j w_j} v_i

    over the m positions of an example that count, so that their weights have the mean 1, and the
    loss's values v the size that they had. The weights have no gradient. Where all of them are 0,
    each is 1; a position of weight 0 adds nothing, whatever its value is.

    Attributes:
        signal: weights ``(b, n)``, none below 0; or an attention, whose mass on each key is meant,
            over all heads and the rows that count.
        layer: which one of a signal with layers.
        query: the one query of an attention whose keys' probabilities are meant, such as [CLS].
        softmax: whether the exponential of the signal is meant, of an attention that of the mean
            over its heads and rows.

    Source: after Cao et al., *MoVE-KD*, 2025, https://arxiv.org/abs/2501.01709, whose code takes
    the softmax of the [CLS] token's attention, and adds the loss without weights to it.
    """

    what = "token_weights"

    signal: str
    layer: int = -1
    query: int | None = None
    softmax: bool = False

    @classmethod
    def of(cls, term: str, given: str | Mapping[str, Any] | TokenWeights | None) -> Any:
        """From a signal's name or a table; None stays.

        Raises:
            RecipeError: keys that mean nothing.
        """
        if given is None or isinstance(given, TokenWeights):
            return given
        table = {"signal": given} if isinstance(given, str) else given
        return validated(cls, table, f"term {term!r}: token_weights", RecipeError)

    def of_teacher(self, term: str, teacher: Signals) -> Tensor:
        """The weights of the teacher's tokens ``(b, n)``, as they are, without gradient.

        Raises:
            SignalError: the teacher has no such signal.
            RecipeError: a layer or a query that is not there.
            ShapeError: a signal of another shape.
        """
        try:
            signal: Any = teacher[self.signal]
        except SignalError as error:
            raise SignalError(f"term {term!r}: token_weights: of the teacher, {error}") from None
        if not isinstance(signal, (Tensor, Attention)):
            signal = self._chosen(term, "layer", signal, self.layer)
        if isinstance(signal, Attention):
            return self._of_attention(term, signal.detach())
        if self.query is not None or signal.ndim != 2:
            raise ShapeError(
                f"term {term!r}: token_weights are an attention or one number for each token, "
                f"(b, n), without a `query`; {self.signal!r} is {tuple(signal.shape)}"
            )
        return widen(signal.detach())

    def _of_attention(self, term: str, attention: Attention) -> Tensor:
        rows = attention.valid_rows()
        p = torch.where(rows[..., None], attention.probabilities(), 0)
        if self.query is not None:
            size = p.shape[2]
            self._chosen(term, "query", range(size), self.query)
            place = self.query % size
            p, rows = p[:, :, place : place + 1], rows[:, :, place : place + 1]
        return p.sum((1, 2)) / rows.sum((1, 2)).clamp_min(1)[:, None]

    def _chosen(self, term: str, what: str, among: Any, index: int) -> Any:
        size = len(among)
        if not -size <= index < size:
            raise RecipeError(
                f"term {term!r}: token_weights: {self.signal!r} has no {what} {index}; it has "
                f"{size}, from 0"
            )
        return among[index]

    def applied(
        self, term: str, weights: Tensor, values: Tensor, kept: Tensor | None, *, rows: bool
    ) -> Tensor:
        """The values of a loss, each times the weight of its position.

        Args:
            term: what errors call the term.
            weights: those of the teacher's tokens.
            values: what the loss returned.
            kept: which of them count, of their shape; None: all.
            rows: the values are of rows of attentions, ``(b, h, q)``; else of positions
                ``(b, n, ...)``.

        Raises:
            ShapeError: values that are not of these tokens.
            SignalError: weights below 0.
        """
        axis = 2 if rows else 1
        if values.ndim <= axis or (values.shape[0], values.shape[axis]) != tuple(weights.shape):
            raise ShapeError(
                f"term {term!r}: token_weights = {self.signal!r} are of {tuple(weights.shape)} "
                f"tokens, but the loss's values are {tuple(values.shape)}: the signal must be of "
                "the tokens that are compared"
            )
        shape = [1] * values.ndim
        shape[0], shape[axis] = weights.shape
        spread = weights.to(values).reshape(shape).expand(values.shape)
        if kept is not None:
            spread = torch.where(kept, spread, 0)
        inner = tuple(range(1, values.ndim))
        if self.softmax:
            spread = _exponentials(spread, kept, inner)
        else:
            self._check_not_negative(term, spread)
        count = torch.ones_like(spread) if kept is None else kept.to(spread)
        total = spread.sum(inner, keepdim=True)
        shares = spread * (count.sum(inner, keepdim=True) / torch.where(total == 0, 1, total))
        factors = torch.where(total == 0, 1, shares)
        return torch.where(factors == 0, 0, values * factors)

    def _check_not_negative(self, term: str, weights: Tensor) -> None:
        looks = weights.device.type == "cpu" and not torch.compiler.is_compiling()
        if looks and bool((weights < 0).any()):
            raise SignalError(
                f"term {term!r}: token_weights = {self.signal!r} has numbers below 0, which are no "
                "weights: softmax = true takes their exponentials"
            )


def _exponentials(x: Tensor, kept: Tensor | None, inner: tuple[int, ...]) -> Tensor:
    """The exponentials of what is kept, in units of the largest."""
    if not x.numel():
        return x
    scores = x if kept is None else torch.where(kept, x, -torch.inf)
    peak = scores.amax(inner, keepdim=True)
    powers = (x - torch.where(peak == -torch.inf, 0, peak)).exp()
    return powers if kept is None else torch.where(kept, powers, 0)
