"""What a log says before its first step: the recipe, what it compares and costs, whom to cite."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from torch import nn

from .. import losses
from .._objective.checks import Check
from .._objective.distiller import Distiller
from .._objective.schedule import Schedule
from .._objective.teacher import device_of
from .._objective.term import Term
from .._version import installed_version
from ..errors import UnknownNameError
from .lines import ComparedFacts, Facts, ModelFacts, RecipeFacts, TermFacts, finite

_PACKAGES = ("torch", "transformers", "accelerate", "lightning", "peft")


def versions() -> dict[str, str]:
    """What the program runs with."""
    found = {"distillkit": installed_version(), "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def facts_of(distiller: Distiller, check: Check | None) -> Facts:
    """What is known of a distiller, and of a dry run where there was one."""
    terms = distiller.objective.each()
    recipe = distiller.recipe
    named = None
    if recipe is not None:
        named = RecipeFacts(
            name=recipe.name, summary=recipe.summary, equation=recipe.equation, omits=recipe.omits
        )
    weighting = "static" if recipe is None else _text_of(recipe.weighting)
    return Facts(
        recipe=named,
        weighting=weighting,
        terms=[_term_facts(term) for term in terms],
        compared=[] if check is None else [_compared(one) for one in check.terms],
        problems=[] if check is None else list(check.problems),
        citations=citations(terms, "" if recipe is None else recipe.reference),
        student=model_facts(distiller.student, type(distiller.student).__name__),
        teachers=[
            model_facts(model, type(model).__name__ if name == "teacher" else name)
            for name, model in distiller.teachers.items()
        ],
        aligners=sum(p.numel() for p in distiller.objective.parameters() if p.requires_grad),
        device=str(device_of(distiller.student)),
    )


def model_facts(model: nn.Module, name: str) -> ModelFacts:
    """The size of a model; of a sharded one, of all its shards."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ModelFacts(
        name=name,
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, trains in sizes if trains),
    )


def citations(terms: list[Term], reference: str) -> str:
    """BibTeX of the recipe's source and of its losses, each once."""
    found = []
    for name in filter(None, [reference, *(term.loss_name for term in terms if not term.is_task)]):
        try:
            found.append(losses.citation(name))
        except UnknownNameError:  # a source or a function of one's own has no entry
            found.append(f"% {name}: no BibTeX is known to distillkit")
    return "\n\n".join(dict.fromkeys(found))


def _term_facts(term: Term) -> TermFacts:
    return TermFacts(
        name=str(term.name),
        loss=term.loss_name,
        on=", ".join(map(str, term.on)),
        weight=_weight(term.weight),
        layers="" if term.is_task else _text_of(term.layers.given),
        align=", ".join(term.aligners.names),
    )


def _weight(weight: float | Schedule) -> str:
    if not isinstance(weight, Schedule):
        return f"{weight:g}"
    return (
        f"{weight.start:g} to {weight.stop:g}, {weight.shape}, until {weight.until:.0%} of training"
    )


def _compared(one: Any) -> ComparedFacts:
    value = None if one.value is None else finite({"value": one.value})[0]["value"]
    return ComparedFacts(
        term=one.term, student=one.student, teacher=one.teacher, align=one.align,
        counts=one.counts, value=value, layers=list(one.layers), problems=list(one.problems),
    )  # fmt: skip


def _text_of(given: Any) -> str:
    return given if isinstance(given, str) else repr(given)
