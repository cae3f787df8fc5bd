"""Several runs of one modality in one sequence as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .layout import ModalityTokens


def join_runs(
    parts: Sequence[ModalityTokens], length: int, examples: Callable[[], int]
) -> ModalityTokens:
    """The tokens of several runs, in the order of the sequence.

    Args:
        parts: the runs of one modality, which share no position.
        length: of the sequence.
        examples: how many sequences there are, asked for where no run says it.

    Examples:
        >>> runs = ModalityTokens(slice(0, 1), (0,)), ModalityTokens(slice(1, 5), grid=(2, 2))
        >>> whole = join_runs(runs, 5, lambda: 1)
        >>> whole.positions, whole.special, whole.grid
        (slice(0, 5, None), (0,), (2, 2))
    """
    if len(parts) == 1:
        return parts[0]
    grid = _grids(parts)
    slices = [one.positions for one in parts if isinstance(one.positions, slice)]
    if len(slices) == len(parts) and all(one.stop == two.start for one, two in pairwise(slices)):
        counts = [one.stop - one.start for one in slices]
        positions = slice(slices[0].start, slices[-1].stop)
        extents, ids = (
            _side_by_side([getattr(one, name) for one in parts], counts)
            for name in ("extents", "ids")
        )
        return ModalityTokens(positions, _specials(parts, counts), grid, extents, ids)
    return _sorted(parts, length, grid, examples)


def _specials(parts: Sequence[ModalityTokens], counts: Sequence[int]) -> tuple[int, ...] | Tensor:
    """The special tokens of runs that touch."""
    found: list[int] = []
    start = 0
    for one, count in zip(parts, counts, strict=True):
        if isinstance(one.special, Tensor):
            masks = [_special_mask(part, n) for part, n in zip(parts, counts, strict=True)]
            joined = _side_by_side(masks, counts)
            assert joined is not None
            return joined
        found += [start + place for place in one.special]
        start += count
    return tuple(found)


def _special_mask(tokens: ModalityTokens, count: int) -> Tensor:
    """``(b, m)`` or ``(1, m)``: which of a run's tokens are special."""
    if isinstance(tokens.special, Tensor):
        return tokens.special
    mask = torch.zeros(1, count, dtype=torch.bool)
    mask[:, list(tokens.special)] = True
    return mask


def _side_by_side(facts: Sequence[Tensor | None], counts: Sequence[int]) -> Tensor | None:
    """What is known of the tokens of runs one after another; None where one run knows nothing."""
    known = [x for x in facts if x is not None]
    if not known or (len(known) < len(facts) and known[0].ndim == 2):
        return None
    like = max(known, key=lambda x: x.shape[2] if x.ndim == 3 else 0)
    size = max(len(x) for x in known)
    parts = []
    for x, count in zip(facts, counts, strict=True):
        nothing = x is None or x.shape[2:] != like.shape[2:]  # a run that lies nowhere
        part = like.new_zeros(1, count, *like.shape[2:]) if nothing else x
        assert part is not None
        parts.append(part.to(like).expand(size, *part.shape[1:]))
    return torch.cat(parts, 1)


def _sorted(
    parts: Sequence[ModalityTokens],
    length: int,
    grid: tuple[int, int] | Tensor | None,
    examples: Callable[[], int],
) -> ModalityTokens:
    """The tokens of runs between which others lie."""
    marks = [one.positions for one in parts if isinstance(one.positions, Tensor)]
    size, device = (len(marks[0]), marks[0].device) if marks else (examples(), None)
    masks = [_as_mask(one.positions, size, length, device) for one in parts]
    places, counts = [], []
    for mask in masks:
        counts.append(int(mask.sum(1).max()) if size else 0)
        first = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, : counts[-1]]
        present = torch.arange(counts[-1], device=mask.device) < mask.sum(1, keepdim=True)
        places.append(torch.where(present, first, length))
    place = torch.cat(places, 1)
    longest = int((place < length).sum(1).max()) if size else 0
    order = place.argsort(dim=1, stable=True)[:, :longest]
    present = place.take_along_dim(order, 1) < length

    def in_order(facts: Tensor | None) -> Tensor | None:
        if facts is None:
            return None
        facts = facts.to(order.device)
        facts = facts.expand(size, *facts.shape[1:])
        index = order if facts.ndim == 2 else order[..., None]
        shown = present if facts.ndim == 2 else present[..., None]
        return torch.where(shown, facts.take_along_dim(index, 1), 0).to(facts.dtype)

    extents, ids = (
        in_order(_side_by_side([getattr(one, name) for one in parts], counts))
        for name in ("extents", "ids")
    )
    special = in_order(
        _side_by_side([_special_mask(one, n) for one, n in zip(parts, counts, strict=True)], counts)
    )
    assert special is not None
    positions = torch.stack(masks).any(0)
    return ModalityTokens(positions, _as_positions(special, present), grid, extents, ids)


def _as_positions(special: Tensor, present: Tensor) -> tuple[int, ...] | Tensor:
    """The same places in every example as positions, where no example has fewer tokens."""
    if len(special) and bool((special == special[:1]).all()) and bool(present.all()):
        return tuple(special[0].nonzero()[:, 0].tolist())
    return special


def _as_mask(
    positions: slice | Tensor, size: int, length: int, device: torch.device | None
) -> Tensor:
    if isinstance(positions, Tensor):
        return positions
    mask = torch.zeros(size, length, dtype=torch.bool, device=device)
    mask[:, positions] = True
    return mask


def _grids(parts: Sequence[ModalityTokens]) -> tuple[int, int] | Tensor | None:
    """The grids of all runs; None where tokens of a run without one are no special tokens."""
    with_grid = [one.grid for one in parts if one.grid is not None]
    others = [one for one in parts if one.grid is None]
    if not with_grid or not all(map(_are_special, others)):
        return None
    if len(with_grid) == 1:
        return with_grid[0]
    grids = [one.cpu() if isinstance(one, Tensor) else torch.tensor([[one]]) for one in with_grid]
    size = max(map(len, grids))
    return torch.cat([one.expand(size, -1, 2) for one in grids], 1)


def _are_special(tokens: ModalityTokens) -> bool:
    """Whether a run has special tokens only, as far as nothing needs to be counted."""
    positions, special = tokens.positions, tokens.special
    if isinstance(special, Tensor):
        return False
    if not isinstance(positions, slice):
        return False
    count: int = positions.stop - positions.start
    return len(special) == count
