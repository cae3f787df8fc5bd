"""The listing of recipes: what each compares, who has the signals for it, where it comes from."""

from __future__ import annotations

from collections.abc import Sequence

from ._plugins.catalogue import bibliography
from ._plugins.recipe_card import SIDES, RecipeCard, recipe_card
from ._plugins.specs import RecipeSpec
from .errors import DistillKitError

_INDENT = " " * 4
_SHOWN = 6  # adapters by name in a line of the listing


def recipe_block(heading: str, spec: RecipeSpec) -> str:
    """A recipe's heading and its lines; a recipe that cannot be read says why."""
    try:
        lines = card_lines(recipe_card(spec), shown=_SHOWN)
    except DistillKitError as error:
        lines = [f"cannot be read: {error}"]
    return "\n".join([heading, *(f"{_INDENT}{line}" for line in lines)])


def recipe_details(spec: RecipeSpec) -> str:
    """All that a recipe says of itself, every adapter by name, and its citation."""
    card = recipe_card(spec)
    lines = card_lines(card, shown=None)
    if card.silent:
        lines.append(f"{'unknown':<10}{', '.join(card.silent)}: they do not say what they offer")
    cited = bibliography().get(card.reference)
    return "\n".join([*lines, *(["", cited] if cited else [])])


def card_lines(card: RecipeCard, *, shown: int | None) -> list[str]:
    """The lines of a card, each with its heading.

    Args:
        card: of the recipe.
        shown: how many adapters are named; None: all of them.
    """
    rows = [("compares", ", ".join(f"{weight} x {name}" for name, weight in card.terms))]
    for side in SIDES:
        signals = ", ".join(card.needs[side]) or "nothing"
        rows.append((side, f"{signals} ({_adapters(card.adapters[side], shown)})"))
    rows += [(key, card.guide[key]) for key in ("data", "cost") if key in card.guide]
    said = {"equation": card.equation, "omits": card.omits, "source": card.reference}
    rows += [(key, text) for key, text in said.items() if text]
    return [f"{key:<10}{text}" for key, text in rows]


def _adapters(names: Sequence[str], shown: int | None) -> str:
    if not names:
        return "no installed adapter offers them all"
    listed = names if shown is None else names[:shown]
    more = len(names) - len(listed)
    end = f" and {more} more" if more else ""
    return f"{', '.join(listed)}{end}"
