"""What recipes need of a teacher: which signals, which of their layers, and what else of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .._backbone.depth import LayerIndices, Wanted
from .._backbone.head import PARAMETERS
from .._objective.objective import Objective, wanted_layers
from .._objective.term import Term
from ..errors import RecipeError


@dataclass(frozen=True)
class Need:
    """What is needed of one signal.

    Attributes:
        layers: as indices from either end and as relative depths.
        tokens: an aligner asks which tokens its entries are.
        padding: a term counts padded positions too.
        averages_heads: every term compares an attention's probabilities averaged over its heads.
        terms: what compares it: a loss may read more of an attention than its probabilities, which
            is all that the weights of tokens read.
    """

    layers: LayerIndices
    tokens: bool
    padding: bool
    averages_heads: bool
    terms: tuple[Term, ...]

    @property
    def temperatures(self) -> tuple[float, ...]:
        """At which probabilities are compared: 1, and those of the terms."""
        given = [term.options.get("temperature") for term in self.terms]
        given += [term.learned["temperature"]().item() for term in self.terms if _learns(term)]
        return tuple(sorted({1.0, *(float(t) for t in given if isinstance(t, (int, float)))}))


Needs = dict[str, Need]


def needs_of(objectives: Iterable[Objective]) -> Needs:
    """What some recipes need together, signal by signal."""
    found: Needs = {}
    for objective in objectives:
        wanted = wanted_layers(objective, 1)
        for term in objective.each():
            for name in (pair.teacher for pair in term.on):
                if name in PARAMETERS:
                    raise RecipeError(
                        f"term {term.name!r} compares {name!r}, which is the teacher's own and of "
                        "no example, so that a cache of examples cannot hold it: cache "
                        '"logits.response" for a term on logits, or let the teacher run'
                    )
                one = Need(
                    wanted[name],
                    term.takes_tokens,
                    term.rows == "all",
                    _averages_heads(term),
                    (term,),
                )
                found[name] = _together(found[name], one) if name in found else one
            if term.token_weights is not None:
                name = term.token_weights.signal
                one = Need(
                    wanted[name], tokens=False, padding=False, averages_heads=False, terms=()
                )
                found[name] = _together(found[name], one) if name in found else one
    return found


def wanted_of(needs: Needs) -> Wanted:
    """The layers that a backbone keeps for them."""
    return {name: need.layers for name, need in needs.items()}


def _together(one: Need, other: Need) -> Need:
    layers: LayerIndices = "all"
    if not isinstance(one.layers, str) and not isinstance(other.layers, str):
        layers = one.layers | other.layers
    tokens, padding = one.tokens or other.tokens, one.padding or other.padding
    averages = one.averages_heads and other.averages_heads
    return Need(layers, tokens, padding, averages, one.terms + other.terms)


def _averages_heads(term: Term) -> bool:
    """Whether a term needs no more of an attention than one map for all heads.

    At a temperature the heads are softened before they are averaged, and aligners see them apart.
    Another teacher of an ensemble has them apart, too.
    """
    options = term.options
    plain = options.get("temperature", 1.0) == 1.0 and not len(term.aligners)
    plain = plain and not _learns(term) and not term.teachers.is_ensemble
    return options.get("heads") == "mean" and plain


def _learns(term: Term) -> bool:
    """Whether a term learns its temperature."""
    return "temperature" in term.learned
