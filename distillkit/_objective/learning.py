"""Whether what is learned beside the student is stepped: a projector would stay random."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import RecipeError
from .engines import shows_gathered
from .learned import trained
from .objective import Objective
from .versions import Writes, writes

_PATIENCE = 2  # steps of the student's optimizer in a row
_WEIGHTING = "\0weighting"  # beside the names of terms


class AlignerWatch:
    """Compares writes: an optimizer's step writes into every parameter that it has."""

    def __init__(self) -> None:
        self._student: Writes | None = None
        self._aligners: dict[str, Writes] = {}
        self._missed: dict[str, int] = {}

    def check(
        self,
        root: nn.Module,
        objective: Objective,
        active: Mapping[str, float],
        student: nn.Module,
    ) -> None:
        """Refuse to go on where the student is stepped and an aligner or weighting is not.

        What FSDP has gathered for the time of the call tells nothing, and is taken as learned.

        Args:
            root: the module that runs, the distiller.
            objective: whose terms have aligners.
            active: the terms that count in this step.
            student: the module whose parameters are stepped.

        Raises:
            RecipeError: the term or the weighting, and where its parameters belong.
        """
        if torch.compiler.is_compiling():
            return
        learned = {
            term.name: trained([term.aligners, term.learned])
            for term in objective.each()
            if (len(term.aligners) or len(term.learned)) and term.name in active
        }
        if objective.weighting is not None:
            learned[_WEIGHTING] = [p for p in objective.weighting.parameters() if p.requires_grad]
        learned = {
            name: found
            for name, found in learned.items()
            if found and not any(shows_gathered(root, p) for p in found)
        }
        if not learned:
            return
        now = writes(p for p in student.parameters() if p.requires_grad)
        counts = {name: writes(found) for name, found in learned.items()}
        stepped = self._student is not None and now.follow(self._student)
        for name, count in counts.items():
            if stepped and name in self._aligners:
                still = not count.follow(self._aligners[name])
                self._missed[name] = self._missed.get(name, 0) + 1 if still else 0
            if self._missed.get(name, 0) >= _PATIENCE:
                what = f"term {name!r} has an aligner that learns, or learns an option"
                which = "term"
                if name == _WEIGHTING:
                    what, which = "the objective has a weighting that learns", "weighting"
                raise RecipeError(
                    f"{what}, and no optimizer steps its parameters, while the student's are "
                    "stepped: give the optimizer distiller.parameters(), not the student's alone, "
                    f"or freeze the {which}, distiller.objective.requires_grad_(False)"
                )
        self._student, self._aligners = now, counts
