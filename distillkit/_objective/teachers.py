"""The teachers of a distiller: a single one, or several by their names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .._backbone.adapter import Adapter
from .._backbone.batch import NamedTeacher, SideOfBatch
from .._backbone.depth import Wanted
from .._backbone.signals import Signals
from ..errors import OptionError, RecipeError, SignalError, unknown_name
from .ensemble import ALL, TeacherSignals
from .objective import Objective, wanted_layers
from .surroundings import check_apart
from .teacher import SIGNALS, SignalSource, Teacher, checked_source

AnAdapter: TypeAlias = "Adapter | str | Path | None"
Given: TypeAlias = "nn.Module | SignalSource | None"
OneOrSeveral: TypeAlias = "Given | Mapping[str, Given]"
AdapterOfEach: TypeAlias = "AnAdapter | Mapping[str, AnAdapter]"

ONLY = "teacher"
"""What a single teacher is called where a name is needed."""


class Ran(NamedTuple):
    """The teachers' signals for one batch.

    Attributes:
        signals: of a single teacher, or of several by their names.
        all_here: whether nobody brought any: each that was needed ran, or was read.
    """

    signals: TeacherSignals
    all_here: bool


class Teachers:
    """The teachers of a distiller, each a frozen model, a source of signals, or brought by calls.

    Args:
        given: a model, a source or None; or name -> one of these.
        adapter: of the model; of several, name -> adapter, and the others are found by class.
        objective: whose terms learn from them.
        student: which must not share what learns with any of them.

    Raises:
        SignalError: what is no teacher, or shares parameters with the student.
        RecipeError: names that batch entries cannot have; terms and teachers that do not fit.
        UnknownNameError: an adapter of an unknown teacher.
    """

    def __init__(
        self, given: OneOrSeveral, adapter: AdapterOfEach, objective: Objective, student: nn.Module
    ) -> None:
        self._several = isinstance(given, Mapping)
        each: Mapping[str, Given] = given if isinstance(given, Mapping) else {ONLY: given}
        self.names = tuple(each)
        objectives = {ONLY: objective}
        if self._several:
            _check_names(self.names)
            objectives = {name: objective.of_teacher(name, self.names) for name in each}
        else:
            objective.check_one_teacher()
        adapters = self._adapters(adapter)
        self._wanted: dict[str, Wanted] = {n: wanted_layers(o, 1) for n, o in objectives.items()}
        self._running: dict[str, Teacher] = {}
        self._sources: dict[str, SignalSource] = {}
        for one in each.values():
            if isinstance(one, nn.Module):
                check_apart(student, one)
        try:
            for name, one in each.items():
                if isinstance(one, nn.Module):
                    self._running[name] = Teacher(one, adapters.get(name))
                elif one is not None:
                    source = checked_source(one, objectives[name], adapters.get(name))
                    self._sources[name] = source
        except BaseException:
            self.close()  # those before it are as they were
            raise

    def _adapters(self, given: AdapterOfEach) -> Mapping[str, AnAdapter]:
        """Name -> adapter."""
        if not self._several:
            if isinstance(given, Mapping):
                raise SignalError(
                    "teacher_adapter= is one adapter for a single teacher; name the teacher too, "
                    "Distiller(student, {name: teacher}, recipe)"
                )
            return {ONLY: given}
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            raise SignalError(
                "several teachers have an adapter each: teacher_adapter={name: adapter}; got "
                f"{given!r}"
            )
        for name in given:
            if name not in self.names:
                raise unknown_name("teacher (of teacher_adapter=)", name, self.names)
        return given

    @property
    def only(self) -> Teacher | None:
        """The single teacher; None, where none runs.

        Raises:
            SignalError: there are several.
        """
        if self._several:
            raise SignalError(
                "this distiller has several teachers: distiller.teachers[name], with a name of "
                f"{', '.join(map(repr, self.names))}"
            )
        return self._running.get(ONLY)

    @property
    def models(self) -> dict[str, nn.Module]:
        """Name -> model, of those that run."""
        return {name: one.model for name, one in self._running.items()}

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The beginnings of batch entries that are one teacher's own, of several."""
        return tuple(NamedTeacher(name).prefix for name in self.names) if self._several else ()

    @property
    def entries(self) -> frozenset[str]:
        """The batch entries that adapters and sources say they read."""
        adapters = [one.backbone.adapter for one in self._running.values()]
        found = [getattr(one, "entries", ()) for one in adapters]
        return frozenset[str]().union(*found, *(one.entries for one in self._sources.values()))

    def needed(self, objective: Objective, active: Collection[str]) -> list[str]:
        """The teachers that terms in ``active`` learn from."""
        if self._several:
            return objective.teachers(active, self.names)
        terms = objective.each()
        return [ONLY] if any(x.name in active and not x.is_task for x in terms) else []

    def run(
        self,
        batch: Mapping[str, Any],
        needed: Collection[str],
        *,
        used: set[str],
        device: torch.device,
        known: TeacherSignals | None = None,
    ) -> Ran:
        """Their signals for a batch, without gradient.

        Args:
            batch: the whole batch.
            needed: the names of those that are needed; no other runs.
            used: the entries that were read are added here.
            device: where the student is; what was made elsewhere is moved there.
            known: what the caller brings; of several teachers, also of some only.

        Raises:
            SignalError: signals of a single teacher for several, or the other way round; a teacher
                that does not run here, and whose signals nobody brings.
            UnknownNameError: signals of an unknown teacher.
        """
        found = self._by_name(known)
        brought = batch.get(SIGNALS)
        brings = isinstance(brought, Mapping)  # as Signals are
        all_here = not found and not brings
        if not needed:
            return Ran({} if self._several else Signals({}), all_here)
        if brings:
            used.add(SIGNALS)
            for name, signals in self._by_name(brought).items():
                if name in needed and name not in found:
                    found[name] = signals.to(device, non_blocking=True)
        ran = {
            name: found[name] if name in found else self._run(name, batch, used, device)
            for name in self.names
            if name in needed
        }
        return Ran(ran if self._several else ran[ONLY], all_here)

    def _by_name(self, given: TeacherSignals | None) -> dict[str, Signals]:
        if given is None:
            return {}
        if isinstance(given, Signals):
            if self._several:
                raise SignalError(
                    "signals of a single teacher for a distiller with several: pass them by "
                    f"name, {{{self.names[0]!r}: signals}}"
                )
            return {ONLY: given}
        if not self._several:
            raise SignalError(
                "signals by the names of teachers for a distiller with a single one: pass "
                f"those of one; got {sorted(given)}"
            )
        for name, signals in given.items():
            if name not in self.names:
                raise unknown_name("teacher (of teacher_signals)", name, self.names)
            if not isinstance(signals, Signals):
                raise SignalError(
                    f"teacher_signals[{name!r}] is Signals; got {type(signals).__name__}"
                )
        return dict(given)

    def one(self, name: str | None, batch: Mapping[str, Any], device: torch.device) -> Signals:
        """The signals of one teacher: every layer of one that runs, else what was kept or brought.

        Args:
            name: which of several; None: the only one.
            batch: the whole batch.
            device: where the student is.

        Raises:
            OptionError: none of several is named, or a single one is.
            UnknownNameError: another name.
        """
        if self._several and name is None:
            raise OptionError(
                f"this distiller has the teachers {', '.join(map(repr, self.names))}; name the one "
                f"to look at, such as {self.names[0]!r}"
            )
        if not self._several and name is not None:
            raise OptionError(f"this distiller has one teacher, without a name; got {name!r}")
        name = ONLY if name is None else name
        if name not in self.names:
            raise unknown_name("teacher", name, self.names)
        if name in self._running:
            return self._running[name].run(self._view(name, batch, set()), None)
        found = self.run(batch, [name], used=set(), device=device).signals
        return found if isinstance(found, Signals) else found[name]

    def _view(self, name: str, batch: Mapping[str, Any], used: set[str]) -> SideOfBatch:
        """The batch as one teacher sees it."""
        others = tuple(one for one in self.names if one != name)
        named = NamedTeacher(name, others) if self._several else None
        return SideOfBatch(batch, "teacher", used, named)

    def _run(
        self, name: str, batch: Mapping[str, Any], used: set[str], device: torch.device
    ) -> Signals:
        view = self._view(name, batch, used)
        if name in self._sources:
            found = self._sources[name].run(view, self._wanted[name])
            return found.to(device, non_blocking=True)
        if name not in self._running:
            which = f"teacher {name!r}" if self._several else "teacher"
            raise SignalError(
                f"this distiller has no {which}: pass teacher_signals=, or give it one (a model, "
                "or a SignalCache)"
            )
        return self._running[name].run(view, self._wanted[name])

    def check_apart(self, student: nn.Module) -> None:
        """Refuse a student that shares what learns with a teacher."""
        for one in self._running.values():
            check_apart(student, one.model)

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        """Follow a student that is moved, each teacher as :meth:`Teacher.move` does."""
        for one in self._running.values():
            one.move(function)

    def close(self) -> None:
        """Give every model back as it was."""
        for one in self._running.values():
            one.close()


def trackable(given: TeacherSignals) -> TeacherSignals:
    """The same signals, of which autograd may save every tensor."""
    if isinstance(given, Signals):
        return given.trackable()
    return {name: one.trackable() for name, one in given.items()}


def _check_names(names: tuple[Any, ...]) -> None:
    """Refuse names that cannot begin the names of batch entries, or that leave them open."""
    if not names:
        raise RecipeError("several teachers are a mapping from name to teacher; got none")
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or name == ALL:
            raise RecipeError(
                f"a teacher's name is a word, other than {ALL!r}, since its own batch entries are "
                f"called teacher_<name>_x; got {name!r}"
            )
        longer = next((one for one in names if str(one).startswith(f"{name}_")), None)
        if longer is not None:
            raise RecipeError(
                f"an entry 'teacher_{longer}_x' could be of the teacher {name!r} or of {longer!r}: "
                "rename one of them"
            )
