"""What a registered recipe compares, and which installed adapters have the signals for it.

Read off the TOML files and the adapters' own words, so that the listing needs neither torch nor a
model.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError
from .offers import DIRECTIONS, signals_of_file
from .registry import provided
from .specs import AdapterSpec, RecipeSpec, resource_file

SIDES = ("student", "teacher")


@dataclass(frozen=True)
class RecipeCard:
    """A recipe at a glance.

    Attributes:
        terms: the name of each term, and its weight as the file writes it.
        needs: side -> the signals that it has to offer.
        adapters: side -> the installed adapters whose models offer all of them.
        silent: adapters that do not say what they offer.
        reference: where it comes from, as the file says.
        equation: the source's loss as one line.
        omits: what of the source is not reproduced.
        guide: who it is for: teacher, student, data, cost.
    """

    terms: tuple[tuple[str, str], ...]
    needs: Mapping[str, tuple[str, ...]]
    adapters: Mapping[str, tuple[str, ...]]
    silent: tuple[str, ...]
    reference: str
    equation: str
    omits: str
    guide: Mapping[str, str]


def recipe_card(spec: RecipeSpec) -> RecipeCard:
    """The card of a registered recipe.

    Raises:
        SpecError: its file is not there.
        RecipeError: its file is no recipe.
    """
    table = recipe_table(spec)
    needs = {side: _needed(table["terms"], side) for side in SIDES}
    offers = adapter_offers()
    adapters = {
        side: tuple(name for name, known in offers.items() if known and _has(known, needs[side]))
        for side in SIDES
    }
    return RecipeCard(
        terms=tuple((_label(term), str(term.get("weight", 1.0))) for term in table["terms"]),
        needs=needs,
        adapters=adapters,
        silent=tuple(name for name, known in offers.items() if not known),
        reference=table.get("reference", ""),
        equation=table.get("equation", ""),
        omits=table.get("omits", ""),
        guide=table.get("guide", {}),
    )


def recipe_table(spec: RecipeSpec) -> dict[str, Any]:
    """The file of a recipe, as it is written."""
    try:
        table = tomllib.loads(resource_file(spec).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {spec.name!r} is no TOML: {error}") from None
    terms = table.get("terms")
    if not isinstance(terms, list) or not all(isinstance(one, dict) for one in terms):
        raise RecipeError(f"recipe {spec.name!r} has no [[terms]]")
    return table


def adapter_offers() -> dict[str, frozenset[str]]:
    """Installed adapter -> the signals that its models offer; nothing, where it does not say."""
    found = {}
    for name, specs in provided(AdapterSpec).items():
        for spec in specs.values():
            found[name] = frozenset(spec.offers) or _offers_of_file(spec)
    return dict(sorted(found.items()))


def is_offered(signal: str, offers: Iterable[str]) -> bool:
    """Whether a backbone with these signals has this one, itself or made of them.

    Examples:
        >>> is_offered("logits.response", ["logits"]), is_offered("hidden.text", ["logits"])
        (True, False)
    """
    known = set(offers)
    return signal in known or any(source in known for source in _sources(signal))


def _sources(signal: str) -> Sequence[str]:
    """The signals of which a derived signal is made, any one of them."""
    kind, _, rest = signal.partition(".")
    if kind in ("logits", "head"):
        return ["logits"]
    if kind == "scores":
        return ["embedding.text"] if rest else ["logits", "embedding.text"]
    if kind == "hidden":
        return [f"hidden.{rest.partition('.')[0]}"]
    if rest in DIRECTIONS:  # a causal decoder has text_to_image alone: its adapter says which
        return [f"attention.{rest}"]
    if kind in ("attention", "attention_mass") and "_to_" in rest:
        return ["attention.joint", f"attention.{rest}"]
    return []


def _offers_of_file(spec: AdapterSpec) -> frozenset[str]:
    if spec.resource is None:
        return frozenset()
    tables = tomllib.loads(resource_file(spec).read_text(encoding="utf-8"))
    return frozenset(signals_of_file(tables))


def _has(offers: Iterable[str], needs: Iterable[str]) -> bool:
    return all(is_offered(signal, offers) for signal in needs)


def _needed(terms: Iterable[Mapping[str, Any]], side: str) -> tuple[str, ...]:
    """The signals that the terms compare on one side, each once, in their order."""
    return tuple(dict.fromkeys(one[side] for term in terms for one in _compared(term)))


def _compared(term: Mapping[str, Any]) -> list[Mapping[str, str]]:
    on = term.get("on", [])
    listed = on if isinstance(on, list) else [on]
    return [dict.fromkeys(SIDES, one) if isinstance(one, str) else one for one in listed]


def _label(term: Mapping[str, Any]) -> str:
    """What ``parts`` calls a term, unless its name says it."""
    if "name" in term:
        return str(term["name"])
    names = ["~".join(dict.fromkeys(one[side] for side in SIDES)) for one in _compared(term)]
    return "/".join([str(term.get("loss", "?")), *(["+".join(names)] if names else [])])
