"""Whether what a term learns is learned: a projector that no optimizer steps stays random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from .engines import shows_gathered
from .learned import trained
from .objective import Objective

_PATIENCE = 2  # steps of the student's optimizer in a row


class AlignerWatch:
    """Counts in-place writes: an optimizer's step writes into every parameter that it has."""

    def __init__(self) -> None:
        self._student = -1
        self._aligners: dict[str, int] = {}
        self._missed: dict[str, int] = {}

    def check(
        self,
        root: nn.Module,
        objective: Objective,
        active: Mapping[str, float],
        student: nn.Module,
    ) -> None:
        """Refuse to go on where the student is stepped and a trained aligner is not.

        What FSDP has gathered for the time of the call tells nothing, and is taken as learned.

        Args:
            root: the module that runs, the distiller.
            objective: whose terms have aligners.
            active: the terms that count in this step.
            student: the module whose parameters are stepped.

        Raises:
            RecipeError: the term, and where its parameters belong.
        """
        if torch.compiler.is_compiling():
            return
        learned = {
            term.name: trained([term.aligners, term.learned])
            for term in objective.each()
            if len(term.aligners) or len(term.learned)
        }
        learned = {
            name: found
            for name, found in learned.items()
            if found and not any(shows_gathered(root, p) for p in found)
        }
        if not learned:
            return
        now = _writes([p for p in student.parameters() if p.requires_grad])
        counts = {name: _writes(found) for name, found in learned.items() if name in active}
        stepped = -1 < self._student < now
        for name, count in counts.items():
            if stepped and name in self._aligners:
                still = self._aligners[name] == count
                self._missed[name] = self._missed.get(name, 0) + 1 if still else 0
            if self._missed.get(name, 0) >= _PATIENCE:
                raise RecipeError(
                    f"term {name!r} has an aligner that learns, or learns an option, and no "
                    "optimizer steps its parameters, while the student's are stepped: give the "
                    "optimizer distiller.parameters(), not the student's alone, or freeze the "
                    "terms, distiller.objective.requires_grad_(False)"
                )
        self._student, self._aligners = now, counts


def _writes(parameters: Sequence[Tensor]) -> int:
    return sum(p._version for p in parameters if not p.is_inference())  # noqa: SLF001
