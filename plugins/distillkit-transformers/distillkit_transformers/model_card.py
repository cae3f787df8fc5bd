"""What a model card says of the distillation."""

from __future__ import annotations

import distillkit as dk
from distillkit import losses
from distillkit.errors import UnknownNameError


def distillation_section(distiller: dk.Distiller) -> str:
    """The section of a model card: teacher, terms and what to cite, in Markdown.

    Args:
        distiller: whose student the card is about.
    """
    terms = distiller.objective.each()
    rows = [f"| {term.name} | {_on(term)} | {_weight(term)} |" for term in terms]
    names = [_name_of(teacher) for teacher in distiller.teachers.values()]
    several = "teachers" if len(names) > 1 else "teacher"
    return "\n".join(
        [
            "## Distillation",
            "",
            f"Distilled with distillkit from the {several} {', '.join(names) or 'none'}.",
            "",
            "| term | signals | weight |",
            "|---|---|---|",
            *rows,
            "",
            "```bibtex",
            _citations(terms),
            "```",
            "",
        ]
    )


def _on(term: dk.Term) -> str:
    return ", ".join(map(str, term.on)) or "the student's own loss"


def _weight(term: dk.Term) -> str:
    weight = term.weight
    if not isinstance(weight, dk.Schedule):
        return str(weight)
    return f"{weight.start} to {weight.stop} ({weight.shape}, until {weight.until:.0%} of training)"


def _name_of(model: object) -> str:
    path = getattr(getattr(model, "config", None), "_name_or_path", "")
    name = type(model).__name__
    return f"`{path}` ({name})" if path else f"`{name}`"


def _citations(terms: list[dk.Term]) -> str:
    found = []
    for term in terms:
        if term.is_task:
            continue
        try:
            found.append(losses.citation(term.loss_name))
        except UnknownNameError:  # a function of one's own has no entry
            found.append(f"% {term.loss_name} is not published with distillkit")
    return "\n\n".join(dict.fromkeys(found))
