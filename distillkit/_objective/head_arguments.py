"""What a loss of output projections is told of them, beside their weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any

from ..errors import RecipeError
from .comparison import Comparison


def free_head_arguments(
    said: tuple[str, str],
    accepted: Collection[str],
    comparison: Comparison,
    bound: Mapping[str, Any],
) -> dict[str, Any]:
    """Biases and soft caps of both heads, of those that the recipe does not give itself.

    Args:
        said: what errors call the term and its loss.
        accepted: the parameters of the loss.
        comparison: both sides in this step.
        bound: the loss's arguments in the recipe.

    Raises:
        RecipeError: a loss that takes none, or a soft cap that is not the model's.
    """
    term, loss = said
    found: dict[str, Any] = {}
    for name, value in comparison.head_arguments().items():
        given = bound.get(name)
        if name not in accepted or (isinstance(given, Real) and given != value):
            shown = f"{value}" if isinstance(value, float) else f"{tuple(value.shape)}"
            raise RecipeError(
                f"term {term!r}: the model's head has {name} = {shown}, and the loss {loss!r} "
                + (f"is given {given}" if name in accepted else "takes no such argument")
                + ": it would compare another distribution"
            )
        if given is None:
            found[name] = value
    return found
