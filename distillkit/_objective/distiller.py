"""Run both models under capture and return the loss: a training step in three lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._backbone.adapter import Adapter, adapter_for
from .._backbone.signals import Signals
from .._capture.anchor import anchor
from .._capture.scope import Scope
from ..errors import DistillKitError, RecipeError, SignalError
from .batch import SideOfBatch, check_all_used, checked_batch
from .comparison import Check, TermCheck, check_first_batch, check_term, offered
from .recipe import Recipe, load_recipe
from .term import Objective

TaskLoss = Callable[[Any, Mapping[str, Any]], Tensor]


class Distilled(NamedTuple):
    """What a distiller returns for one batch.

    Attributes:
        loss: the scalar to call ``backward`` on.
        parts: term -> its unweighted value, detached, float32.
        weights: term -> the weight it had.
        student: the student's signals.
        teacher: the teacher's signals; empty where no term needed them.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    weights: dict[str, float]
    student: Signals
    teacher: Signals


class Distiller(nn.Module):
    """A student, a frozen teacher and an objective, as one module to call and to wrap.

    The loss is computed inside ``forward``, so that gradients of captured tensors are synchronised
    under DDP and FSDP like any others: wrap the distiller, not the student. The teacher is kept in
    eval mode and out of ``parameters()``, ``state_dict()`` and ``train()``; ``.to()`` moves it.

    Args:
        student: the model that learns.
        teacher: the model that is imitated; its parameters are frozen. None where every call
            brings ``teacher_signals``.
        recipe: a :class:`Recipe`, its name or path, or an :class:`Objective`.
        student_adapter: an adapter, its name, the path of its TOML file; None finds it by class.
        teacher_adapter: the same for the teacher.
        task_loss: ``task_loss(output, batch)`` for a term ``"task"``; by default the student's
            output has a field ``loss``.
        ignore: batch entries that nothing uses; any other such entry is an error.
        example: a batch, from which aligners whose sizes the recipe leaves open are built; both
            models run on it once.

    Raises:
        UnknownNameError: an adapter, recipe or loss that nothing provides.
        CaptureError: a stream's pattern that matches no module.
        RecipeError: an aligner without sizes, and no example.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        recipe: Recipe | Objective | str | Path,
        *,
        student_adapter: Adapter | str | Path | None = None,
        teacher_adapter: Adapter | str | Path | None = None,
        task_loss: TaskLoss | None = None,
        ignore: Iterable[str] = (),
        example: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self._ignore = tuple(ignore)
        self._compared = False
        if isinstance(recipe, (str, Path)):
            recipe = load_recipe(recipe)
        self.objective = recipe if isinstance(recipe, Objective) else recipe.build()
        self._task_loss = task_loss
        self._student = _Watched(student, adapter_for(student, student_adapter))
        self._teacher: _Watched | None = None
        if teacher is not None:
            _check_apart(student, teacher)
            teacher.eval().requires_grad_(requires_grad=False)
            self._teacher = _Watched(teacher, adapter_for(teacher, teacher_adapter))
        self._build_aligners(example)

    def forward(
        self,
        batch: Mapping[str, Any],
        *,
        progress: float | None = None,
        teacher_signals: Signals | None = None,
    ) -> Distilled:
        """The loss of one batch.

        Args:
            batch: what the adapters take both models' inputs from.
            progress: the part of training that is done, in [0, 1]; scheduled weights need it.
            teacher_signals: what :meth:`run_teacher` returned for these examples before; the
                teacher does not run.
        """
        used: set[str] = set()
        batch = checked_batch(batch)
        compares = self.objective.compares(progress)
        ran_teacher = teacher_signals is None and compares
        if ran_teacher:
            teacher_signals = self._run_teacher(batch, used)
        elif teacher_signals is None or not compares:
            teacher_signals = Signals({})
        own = SideOfBatch(batch, "student", used)
        output, student_signals = self._student.run(own)
        task = self._task(output, own, progress)
        if self.training and not self._compared:
            self._check_first(batch, used, progress, student_signals, teacher_signals, ran_teacher)
        result = self.objective(
            student_signals, teacher_signals, batch=own, task=task, progress=progress
        )
        loss = result.loss
        if dist.is_available() and dist.is_initialized() and loss.requires_grad:
            # the student's modules gather parameters, or are waited for, by way of its outputs
            loss = anchor(loss, output)
        return Distilled(loss, result.parts, result.weights, student_signals, teacher_signals)

    def run_teacher(self, batch: Mapping[str, Any]) -> Signals:
        """The teacher's signals for a batch, without gradient: what is worth computing once."""
        return self._run_teacher(checked_batch(batch), set())

    def _run_teacher(self, batch: Mapping[str, Any], used: set[str]) -> Signals:
        if self._teacher is None:
            raise SignalError(
                "this distiller has no teacher: pass teacher_signals=, or give it one"
            )
        _keep_in_eval(self._teacher.model)
        with torch.no_grad():
            return self._teacher.run(SideOfBatch(batch, "teacher", used))[1]

    def check(self, batch: Mapping[str, Any], *, teacher_signals: Signals | None = None) -> Check:
        """A dry run on one batch, before any training: what each term will compare.

        Both models run once in eval mode; no parameter, no mode and no random state is changed.
        ``print(distiller.check(batch))`` shows, for every term, both sides' shapes and rows that
        count, the aligners, the value, and what is wrong with the aligner that would fix it.

        Args:
            batch: as for a call.
            teacher_signals: as for a call.
        """
        used: set[str] = set()
        batch = checked_batch(batch)
        terms, problems = self.objective.each(), []
        own = SideOfBatch(batch, "student", used)
        ran_teacher = teacher_signals is None
        with _dry_run(self), torch.enable_grad():
            if teacher_signals is None:
                teacher_signals = Signals({})
                if any(not term.is_task for term in terms):
                    teacher_signals = self._run_teacher(batch, used)
            output, student_signals = self._student.run(own)
            seen = []
            for term in terms:
                if not term.is_task:
                    seen.append(check_term(term, student_signals, teacher_signals, own))
                    continue
                task = self._task_loss_of(output, own)
                missing = () if task is not None else ("the student's output has no field `loss`",)
                value = None if task is None else task.item()
                seen.append(TermCheck(term.name, value=value, problems=missing))
        if ran_teacher:
            try:
                check_all_used(batch, used, self._ignore)
            except DistillKitError as error:
                problems.append(str(error))
        wanted = [name for term in terms for name in term.on]
        offers = [
            offered(side, signals, wanted)
            for side, signals in (("student", student_signals), ("teacher", teacher_signals))
        ]
        return Check(tuple(seen), tuple(problems), tuple(offers))

    def _check_first(
        self,
        batch: Mapping[str, Any],
        used: set[str],
        progress: float | None,
        student: Signals,
        teacher: Signals,
        ran_teacher: bool,  # noqa: FBT001 (a private step of one call)
    ) -> None:
        """Compare both sides, once every term has had a weight."""
        active = self.objective.active(progress)
        check_first_batch(self.objective, active, student, teacher)
        if len(active) < len(self.objective.each()):
            return
        self._compared = True
        if ran_teacher:
            bound = {name for term in self.objective.each() for name in term.inputs.values()}
            check_all_used(batch, used | bound, self._ignore)

    def close(self) -> None:
        """Take the hooks off both models; they are inert outside ``forward`` anyway."""
        self._student.scope.close()
        if self._teacher is not None:
            self._teacher.scope.close()

    def _build_aligners(self, example: Mapping[str, Any] | None) -> None:
        """Everything trainable exists after construction."""
        unbuilt = [term.name for term in self.objective.terms if not term.is_built]
        if not unbuilt:
            return
        if example is None:
            raise RecipeError(
                f"term {unbuilt[0]!r} has an aligner whose sizes are not known: name them in the "
                "recipe, or pass a batch, Distiller(..., example=batch)"
            )
        example = checked_batch(example)
        modes = {module: module.training for module in self.student.modules()}
        self.student.eval()  # statistics of batch norms and random numbers stay as they were
        try:
            with torch.no_grad():
                student = self._student.run(SideOfBatch(example, "student", set()))[1]
        finally:
            for module, training in modes.items():
                module.training = training
        self.objective.build_aligners(student, self.run_teacher(example))

    def _task(self, output: Any, batch: Mapping[str, Any], progress: float | None) -> Tensor | None:
        tasks = [term.name for term in self.objective.each() if term.is_task]
        if not tasks or self.objective.active(progress).keys().isdisjoint(tasks):
            return None
        return self._task_loss_of(output, batch)

    def _task_loss_of(self, output: Any, batch: Mapping[str, Any]) -> Tensor | None:
        if self._task_loss is not None:
            return self._task_loss(output, batch)
        found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        return found if isinstance(found, Tensor) else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:  # noqa: FBT001, FBT002
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        parameter = next(self.student.parameters(), None)
        if self._teacher is not None and parameter is not None:
            self._teacher.model.to(parameter.device)  # its dtype is its own
        return self


def _check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Freezing the teacher must not freeze a part of the student in silence."""
    frozen_with_it = {id(p) for p in teacher.parameters()}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and id(parameter) in frozen_with_it:
            raise SignalError(
                f"student and teacher share the parameter {name!r}, which learns, while a teacher "
                "is frozen. Give the teacher a copy, copy.deepcopy(part), or freeze the shared "
                "part yourself, part.requires_grad_(False)"
            )


def _keep_in_eval(teacher: nn.Module) -> None:
    """Eval mode, whoever called ``train`` since; looking costs less than setting it again."""
    if any(module.training for module in teacher.modules()):
        teacher.eval()


@contextmanager
def _dry_run(distiller: Distiller) -> Iterator[None]:
    """Eval mode and a random state of its own, both put back."""
    modes = {module: module.training for module in distiller.modules()}
    try:
        with torch.random.fork_rng(_accelerators(distiller)):
            distiller.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _accelerators(distiller: Distiller) -> list[torch.device]:
    return sorted({p.device for p in distiller.parameters() if p.device.type == "cuda"}, key=str)


class _Watched:
    """A model, its adapter and the hooks that read it; no module, so that nothing registers it."""

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        self.model, self.adapter = model, adapter
        patterns = [pattern.partition("#")[0] for pattern in adapter.streams.values()]
        self.scope = Scope(model, patterns, outputs=adapter.outputs, returns=adapter.returns)

    def run(self, batch: Mapping[str, Any]) -> tuple[Any, Signals]:
        """The model's output and signals for a batch."""
        self.scope.active = True
        try:
            output = self.model(**self.adapter.inputs(batch))
        finally:
            self.scope.active = False
        layout = self.adapter.layout(batch, self.scope.record)
        return output, self.adapter.signals(self.scope.record, output, layout)
