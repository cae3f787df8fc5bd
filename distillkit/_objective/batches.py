"""The checks of every training batch: what costs nothing each time, a look now and then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from .._backbone.batch import check_all_used
from .._backbone.signals import Signals
from ..errors import OptionError, SignalError
from .checks import check_first_batch
from .comparison import Comparison
from .engines import check_engine, check_weighted
from .ensemble import TeacherSignals
from .learning import AlignerWatch
from .objective import Objective, autocast_off
from .weighting.weights import SettledWeights


class BatchChecks:
    """The checks of every training batch of one distiller.

    Args:
        objective: whose terms compare.
        ignore: batch entries that nothing uses.
        look_every: the tensors of both sides are looked at on the first batch and then on every
            batch of this number; 0: on the first alone.
        prefixes: of the entries that are one teacher's own, of several.

    Raises:
        OptionError: a number of batches below 0.
    """

    def __init__(
        self,
        objective: Objective,
        ignore: Iterable[str],
        look_every: int,
        prefixes: Sequence[str] = (),
    ) -> None:
        if look_every < 0:
            raise OptionError(f"look_every is a number of batches, 0 or more; got {look_every}")
        self._objective, self._ignore = objective, tuple(ignore)
        self._look_every, self._steps = look_every, 0
        self._prefixes = tuple(prefixes)
        self._aligners = AlignerWatch()
        self._looked_at: frozenset[str] = frozenset()
        self._own_entries: frozenset[str] = frozenset()
        # of terms of weight 0, too
        self._bound = frozenset[str]().union(*(term.entries for term in objective.each()))

    def look_again(self) -> None:
        """Look at the next batch: the student is another module."""
        self._looked_at = frozenset()

    def check_structure(
        self,
        root: nn.Module,
        module: nn.Module,
        student: Signals,
        teacher: TeacherSignals,
        active: Mapping[str, float],
        batch: Mapping[str, Any],
    ) -> dict[str, Comparison] | None:
        """Refuse sides that do not fit, and aligners that no optimizer steps.

        Args:
            root: the distiller.
            module: the student.
            student: its signals.
            teacher: the teacher's, or of several teachers by name.
            active: the terms that are computed in this step, and their weights.
            batch: as the student sees it.

        Returns:
            The comparisons of a batch that was looked at, for the objective to go on with.

        Raises:
            SignalError: a term whose sides differ, with the aligner that would fix it.
            RecipeError: an aligner that learns and is not stepped.
        """
        self._aligners.check(root, self._objective, active, module)
        due = self._look_every and self._steps % self._look_every == 0
        self._steps += 1
        if not due and not active.keys() - self._looked_at:
            return None
        check_engine(module)  # an engine may have taken the student since
        if isinstance(self._objective.weighting, SettledWeights):
            check_weighted(root, self._objective.weighting.name)
        with autocast_off():
            compared = self._objective.compare(student, teacher, active, batch)
        seen = check_first_batch(self._objective, active, student, teacher, compared)
        tasks = {term.name for term in self._objective.each() if term.is_task}
        self._looked_at |= seen | tasks
        return compared

    def check_entries(self, batch: Mapping[str, Any], used: set[str], *, every_term: bool) -> None:
        """Refuse entries that nothing uses, and a teacher's own that are missing.

        Args:
            batch: the whole batch.
            used: the entries that both sides read.
            every_term: whether every term was computed: one of weight 0 may use what is left.

        Raises:
            SignalError: the entry, and how to say that it is meant so.
        """
        if every_term:
            check_all_used(batch, used | self._bound, self._ignore)
        self._check_own_entries(batch)
        self._own_entries |= {name for name in used if name.startswith("teacher_")}

    def _check_own_entries(self, batch: Mapping[str, Any]) -> None:
        """Refuse a batch in which the teacher would take what is meant for the student."""
        for name in self._own_entries:
            if batch.get(name) is not None:
                continue
            for shared in self._stand_ins(name):
                if batch.get(shared) is None:
                    continue
                raise SignalError(
                    f"this batch has no entry {name!r}, which earlier ones had, so that the "
                    f"teacher would be given {shared!r} in its place. A loop that drops columns "
                    "which the student's forward does not name must keep it (transformers' "
                    "Trainer: remove_unused_columns=False)"
                )

    def _stand_ins(self, name: str) -> Iterator[str]:
        """The entries that a teacher takes where one of its own is missing."""
        prefix = next((one for one in self._prefixes if name.startswith(one)), "teacher_")
        shared = name.removeprefix(prefix)
        if prefix != "teacher_":
            yield f"teacher_{shared}"
        yield shared
