"""Of several layers of a teacher, the one that each example compares with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import RecipeError


def best_of(
    term: str, candidates: Sequence[tuple[Tensor, Tensor | None]]
) -> tuple[Tensor, Tensor | None]:
    """For each example the values of the layer with the smallest mean of those that count.

    The choice is made example by example, so that splitting a batch changes nothing, and has no
    gradient; the chosen values have theirs. Of equal layers the first is taken, and one of which
    nothing counts for an example only where that is so of all. A layer with NaN is taken, so that
    it is seen.

    Args:
        term: what errors call the term.
        candidates: of each layer the values ``(b, ...)`` and which count; None: all do.

    Raises:
        RecipeError: values that are not of single examples.

    Examples:
        >>> best_of("t", [(torch.tensor([1.0, 5.0]), None), (torch.tensor([2.0, 3.0]), None)])
        (tensor([1., 3.]), None)
    """
    shapes = {tuple(values.shape) for values, _ in candidates}
    if len(shapes) > 1 or () in shapes:
        raise RecipeError(
            f'term {term!r}: match = "best" chooses a layer for each example, and the loss has no '
            f'values of examples: {", ".join(map(str, sorted(shapes)))}; match = "mean" compares '
            "with the mean of the layers"
        )
    means = torch.stack([_example_means(*one) for one in candidates])
    chosen = means.argmin(0)
    values = _chosen([values for values, _ in candidates], chosen)
    masks = [kept for _, kept in candidates]
    if all(kept is None for kept in masks):
        return values, None
    filled = [torch.ones_like(values, dtype=torch.bool) if kept is None else kept for kept in masks]
    return values, _chosen(filled, chosen)


def _example_means(values: Tensor, kept: Tensor | None) -> Tensor:
    """The mean of each example's values that count, without gradient; infinite where none does."""
    values = values.detach().flatten(1) if values.ndim > 1 else values.detach()[:, None]
    if kept is None:
        kept = torch.ones_like(values, dtype=torch.bool)
    kept = kept.reshape(values.shape)
    count = kept.sum(1)
    means = torch.where(kept, values, 0).sum(1) / count.clamp_min(1)
    return torch.where(count > 0, means, torch.inf)


def _chosen(layers: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Every example of the layer that was chosen for it."""
    found = layers[0]
    shape = chosen.shape + (1,) * (found.ndim - 1)
    for i, layer in enumerate(layers[1:], start=1):
        found = torch.where((chosen == i).reshape(shape), layer, found)
    return found
