"""The whole contract of a plugin on one screen: six hooks, each returns specs by name."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from .specs import AdapterSpec, AlignerSpec, LossSpec, OperationSpec, RecipeSpec, WeightingSpec

# A plugin may say which version it is written for, DISTILLKIT_API = 1; without a word it is 1.
API = 1

hookspec = pluggy.HookspecMarker("distillkit")
hookimpl = pluggy.HookimplMarker("distillkit")


@hookspec
def distillkit_losses() -> Iterable[LossSpec]:  # type: ignore[empty-body]
    """Losses that terms and recipes may name."""


@hookspec
def distillkit_adapters() -> Iterable[AdapterSpec]:  # type: ignore[empty-body]
    """Adapters that are found by the class of a model, or named."""


@hookspec
def distillkit_aligners() -> Iterable[AlignerSpec]:  # type: ignore[empty-body]
    """Aligners that a term's ``align`` may name."""


@hookspec
def distillkit_recipes() -> Iterable[RecipeSpec]:  # type: ignore[empty-body]
    """Recipes that ``load_recipe`` may name."""


@hookspec
def distillkit_operations() -> Iterable[OperationSpec]:  # type: ignore[empty-body]
    """Operations that compute attention, for capture to read."""


@hookspec
def distillkit_weightings() -> Iterable[WeightingSpec]:  # type: ignore[empty-body]
    """Weightings of terms that a recipe's ``weighting`` may name."""
