"""Whether a cache holds what somebody asks for: his recipe's signals, of his teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from .._backbone.backbone import Backbone
from .._backbone.depth import positions
from .._objective.objective import Objective
from .._objective.recipe import Recipe, load_recipe
from .._version import installed_version
from ..errors import CacheError
from .identity import Header, adapter_name, check_same, teacher_name, weights_checksum
from .needs import Need, Needs, needs_of
from .spec import SignalSpec

AnyRecipe: TypeAlias = Recipe | Objective | str | Path


def needs_of_recipes(given: AnyRecipe | Sequence[AnyRecipe]) -> Needs:
    """What one recipe needs, or several of them together."""
    recipes = given if isinstance(given, (list, tuple)) else [given]
    return needs_of(map(_objective, recipes))


def _objective(recipe: AnyRecipe) -> Objective:
    if isinstance(recipe, (str, Path)):
        recipe = load_recipe(recipe)
    return recipe if isinstance(recipe, Objective) else recipe.build()


def check_teacher(place: str, header: Header, backbone: Backbone, weights: str | None) -> None:
    """Refuse another teacher than that whose signals are there.

    Raises:
        CacheError: each thing that is another.
    """
    given = {
        "version": installed_version(),
        "teacher": teacher_name(backbone.model),
        "adapter": adapter_name(backbone.adapter),
        "weights": weights or weights_checksum(backbone.model),
    }
    check_same(place, header.model_dump(), given)


def check_needs(place: str, header: Header, needs: Needs) -> None:
    """Refuse a recipe that needs more than is there.

    Raises:
        CacheError: every signal or layer that is missing.
    """
    stored = {one.name: one for one in header.signals}
    lacking = []
    for name, need in needs.items():
        if name not in stored:
            lacking.append(f"  {name!r}: not stored")
            continue
        lacking += _lacking(stored[name], need)
    if lacking:
        raise CacheError(
            f"the recipe needs what {place} does not hold:\n" + "\n".join(lacking) + "\n"
            "Fill another cache with this recipe; SignalCache(place, [recipe, other]) stores "
            "for several"
        )


def _lacking(spec: SignalSpec, need: Need) -> Iterator[str]:
    """What a stored signal lacks of what is needed."""
    if spec.depth is not None:
        layers = [i for i in positions(need.layers, spec.depth) if i not in spec.layers]
        if layers:
            yield f"  {spec.name!r}: layers {layers}; stored are {list(spec.layers)}"
    if need.tokens and not spec.tokens:
        yield f"  {spec.name!r}: which tokens its entries are, which an aligner asks"
    if spec.averages_heads and not need.averages_heads:
        yield f"  {spec.name!r}: the heads apart; their mean is stored"
    if need.padding and spec.axes and "valid" not in spec.axes[0].tokens:
        yield f'  {spec.name!r}: padded positions, which rows = "all" counts'
