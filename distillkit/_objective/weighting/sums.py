"""What the calls of one optimizer step add up to, over micro-batches and ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..surroundings import device_of_collectives
from .gradients import gramian_of, wide_dtype
from .protocol import StepStatistics


class CallOfTerms(NamedTuple):
    """The k computed terms of one call.

    Attributes:
        terms: ``(k,)``, their places among all.
        values: ``(k,)``, their unweighted values, detached.
        shares: ``(k,)``, the part of the whole batch that counted in each; 1 without a normalizer.
        priors: their own weights.
        rows: ``(k, n)``, the gradients of the values; None where nobody asks.
    """

    terms: Tensor
    values: Tensor
    shares: Tensor
    priors: list[float]
    rows: Tensor | None


class StepSums:
    """Sums over the calls of a step; a mean of the whole batch is a sum by its shares.

    With a normalizer the values of the parts add up to the whole's, and so do their shares to 1.
    Without one each call is a whole of its own, and a step's value is the mean over its calls. In
    both cases it is the sum of the values by the sum of the shares.

    Args:
        terms: the number of terms.
        gradients: whether Gramians are kept.
    """

    def __init__(self, terms: int, *, gradients: bool) -> None:
        self.priors = torch.zeros(terms, dtype=torch.float64)
        self.losses, self.shares = torch.zeros_like(self.priors), torch.zeros_like(self.priors)
        size = terms if gradients else 0
        self.gramian = torch.zeros(size, size, dtype=torch.float64)
        self._rows: Tensor | None = None

    def clear(self) -> None:
        """Begin another step."""
        for name in ("priors", "losses", "shares", "gramian"):
            setattr(self, name, torch.zeros_like(getattr(self, name)))
        self._rows = None

    def tensors(self) -> list[Tensor]:
        """What is known of the step, without the gradients themselves."""
        return [self.priors, self.losses, self.shares, self.gramian]

    def load(self, tensors: list[Tensor], *, keep_rows: bool = False) -> None:
        """Take what :meth:`tensors` gave; the gradients of the step that goes on may be kept."""
        self.priors, self.losses, self.shares, self.gramian = tensors
        if not keep_rows:
            self._rows = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins another step, for which the gradients of this one are not needed."""
        return {**vars(self), "_rows": None}

    def add(self, call: CallOfTerms) -> None:
        """One more call; where several processes work together, all of them make it."""
        device = call.values.device
        wide = wide_dtype(device)
        pairs = mean_over_ranks(torch.stack([call.values.to(wide), call.shares.to(device, wide)]))
        places = call.terms.to(device)
        for name, found in (("losses", pairs[0]), ("shares", pairs[1])):
            setattr(self, name, getattr(self, name).to(device, wide).index_add(0, places, found))
        self.priors[call.terms] = torch.tensor(call.priors, dtype=torch.float64)
        if call.rows is not None:
            self._add_rows(call.terms, mean_over_ranks(call.rows))

    def _add_rows(self, terms: Tensor, rows: Tensor) -> None:
        if self._rows is None and len(terms) == len(self.priors):
            self._rows = rows
        else:
            if self._rows is None:
                self._rows = rows.new_zeros(len(self.priors), rows.shape[1])
            self._rows.index_add_(0, terms.to(rows.device), rows)
        self.gramian = gramian_of(self._rows)

    def statistics(self, factors: Tensor) -> StepStatistics | None:
        """What the step showed; None where nothing counted, or where a number is not finite.

        Args:
            factors: ``(terms,)``, those that the terms had.
        """
        losses, shares, gramian = (
            one.to("cpu", torch.float64) for one in (self.losses, self.shares, self.gramian)
        )
        terms = (shares > 0).nonzero().flatten()
        losses, shares = losses[terms], shares[terms]
        if gramian.numel():
            gramian = gramian[terms][:, terms] / shares[:, None] / shares
        losses = losses / shares
        finite = losses.isfinite().all() and gramian.isfinite().all()
        if not (len(terms) and finite):
            return None
        return StepStatistics(terms, losses, self.priors[terms], factors[terms], gramian)


def has_ranks() -> bool:
    """Whether several processes work together."""
    return dist.is_available() and dist.is_initialized()


def mean_over_ranks(found: Tensor) -> Tensor:
    """The mean over all processes, as DDP averages gradients."""
    if not has_ranks():
        return found
    moved = found.to(device_of_collectives(), copy=True)
    dist.all_reduce(moved)
    return (moved / dist.get_world_size()).to(found.device)


def from_first_rank(found: Tensor) -> Tensor:
    """What the first process has, for all of them."""
    moved = found.to(device_of_collectives(), copy=True)
    dist.broadcast(moved, 0)
    return moved.to(found.device)
