"""Run both models under capture and return the loss: a training step in three lines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._backbone.adapter import Adapter
from .._backbone.backbone import ITEMS, Backbone
from .._backbone.batch import SideOfBatch, checked_batch
from .._backbone.head import can_do_without_logits
from .._backbone.signals import Signals
from .._capture.outputs import attach_to_outputs
from ..errors import CaptureError, DistillKitError, RecipeError, SignalError
from .batches import BatchChecks
from .checks import Check, TermCheck, check_term, counted_lines, list_offers
from .comparison import Comparison
from .engines import check_engine, gather_for, is_sharded
from .ensemble import TeacherSignals
from .items import OwnLoss, TaskItems, counts_without_models
from .normalizer import Normalizer
from .objective import Objective, Result, wanted_layers
from .recipe import Recipe, load_recipe
from .surroundings import any_rank_lacks, dry_run, one_batch, over_ranks
from .teacher import Teacher, device_of
from .teachers import AdapterOfEach, OneOrSeveral, Ran, Teachers, trackable
from .tied import drop_aliases, fill_aliases

TaskLoss = Callable[[Any, Mapping[str, Any]], Tensor]

_logger = logging.getLogger("distillkit")


class Distilled(NamedTuple):
    """The result of a distiller for one batch.

    Attributes:
        loss: the scalar to call ``backward`` on.
        parts: term -> its unweighted value, detached, float32.
        weights: term -> the weight it had, its own times the factor of the recipe's weighting.
        student: the student's signals.
        teacher: the teacher's signals; empty where no term needed them. Of several teachers,
            name -> signals, of those that terms needed.
        counts: term -> how much counted in its mean: examples, or positions with ``per = "row"``.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    weights: dict[str, float]
    student: Signals
    teacher: Any
    counts: dict[str, Tensor]


class Distiller(nn.Module):
    """A student, a frozen teacher and an objective, as one module to call and to wrap.

    The loss is computed inside ``forward``, so that gradients of captured tensors are synchronised
    under DDP and FSDP like any others: wrap the distiller, not the student. The teacher is kept in
    eval mode and out of ``parameters()``, ``state_dict()`` and ``train()``; ``.to()`` moves it,
    unless it was placed by somebody (dispatched, offloaded, quantised).

    ``distiller.student`` is the one student: the module that is trained, run, saved and watched.
    Assigning another one (wrapped, or with adapters) moves the watch to it. Between two calls
    nothing is on the models, so that they copy, pickle and run elsewhere as if nobody looked; a
    copy of the distiller watches its own models. Several threads may call one distiller.

    ``distiller.recipe`` is the recipe that it was made of; None, of an :class:`Objective`.

    Tied weights appear once in ``state_dict()``, by their first name, as safetensors wants them.

    Args:
        student: the model that learns.
        teacher: the model that is imitated; its parameters are frozen until :meth:`close`. Or a
            :class:`SignalCache` of its signals, and no teacher runs; None where every call brings
            ``teacher_signals``. Several teachers are a mapping from name to one of these; each
            term of the recipe then names those that it learns from.
        recipe: a :class:`Recipe`, its name or path, or an :class:`Objective`.
        student_adapter: an adapter, its name, the path of its TOML file; None finds it by class.
        teacher_adapter: the same for the teacher; of several teachers, name -> adapter.
        task_loss: ``task_loss(output, batch)`` for a term ``"task"``; by default the student's
            output has a field ``loss``.
        ignore: batch entries that nothing uses; any other such entry is an error.
        example: a batch, from which aligners whose sizes the recipe leaves open are built; both
            models run on it once.
        look_every: the structure of both sides is compared on the first training batch and then on
            every batch of this number, since a look reads tensors; 0: on the first alone. What
            costs nothing is checked on every batch.

    Raises:
        UnknownNameError: an adapter, recipe or loss that nothing provides.
        CaptureError: a stream's pattern that matches no module.
        RecipeError: an aligner without sizes, and no example.
    """

    accepts_loss_kwargs = False
    """To transformers' Trainer: the loss is a mean, not divided by ``num_items_in_batch``."""

    def __init__(  # noqa: PLR0913 (two models, a recipe; the rest by keyword)
        self,
        student: nn.Module,
        teacher: OneOrSeveral,
        recipe: Recipe | Objective | str | Path,
        *,
        student_adapter: Adapter | str | Path | None = None,
        teacher_adapter: AdapterOfEach = None,
        task_loss: TaskLoss | None = None,
        ignore: Iterable[str] = (),
        example: Mapping[str, Any] | None = None,
        look_every: int = 100,
    ) -> None:
        super().__init__()
        self.student = student
        if isinstance(recipe, (str, Path)):
            recipe = load_recipe(recipe)
        self.recipe = recipe if isinstance(recipe, Recipe) else None
        self.objective = recipe if isinstance(recipe, Objective) else recipe.build()
        self._given_task_loss, self._student_adapter = task_loss, student_adapter
        self._wanted = wanted_layers(self.objective, 0)
        check_engine(student)
        self._watched: Backbone | None = Backbone(student, student_adapter)
        self._own_loss: OwnLoss | None = OwnLoss(student)
        self._task_items = TaskItems()
        self._closed = False
        self.register_state_dict_post_hook(drop_aliases)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(fill_aliases)  # type: ignore[no-untyped-call]
        self._teachers = Teachers(teacher, teacher_adapter, self.objective, student)
        self._checks = BatchChecks(self.objective, ignore, look_every, self._teachers.prefixes)
        self._build_aligners(example)

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher; another one takes another distiller. None, where none runs.

        Raises:
            SignalError: there are several, :attr:`teachers`.
        """
        return None if self._teacher is None else self._teacher.model

    @property
    def teachers(self) -> dict[str, nn.Module]:
        """The frozen teachers that run, by name; a single one is called ``"teacher"``."""
        return self._teachers.models

    @property
    def _teacher(self) -> Teacher | None:
        return self._teachers.only

    @property
    def entries(self) -> frozenset[str]:
        """The batch entries that terms and token layouts are known to read, beside the models.

        An adapter that does not say which it reads (``entries``) adds none.
        """
        found = [term.entries for term in self.objective.each()]
        found.append(getattr(self._student.adapter, "entries", frozenset()))
        return self._teachers.entries.union(*found)

    @property
    def _student(self) -> Backbone:
        """The student's backbone, which follows ``self.student``."""
        if self._watched is None or self._watched.model is not self.student:
            self._follow()
        assert self._watched is not None
        return self._watched

    def _follow(self) -> None:
        """Watch the module that is the student now: another one, a wrapper, a replica."""
        student = self.student
        if not isinstance(student, nn.Module):
            raise SignalError(f"distiller.student is a module; got {type(student).__name__}")
        check_engine(student)
        self._teachers.check_apart(student)
        self._watched = Backbone(student, self._student_adapter)
        if self._own_loss is not None:
            self._own_loss = self._own_loss.moved_to(student)
        self._checks.look_again()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("teacher", "teachers"):
            raise SignalError(
                "a distiller keeps the teacher that it was made with, which it has frozen; make "
                "another one, Distiller(student, teacher, recipe)"
            )
        super().__setattr__(name, value)

    def forward(
        self,
        batch: Mapping[str, Any] | None = None,
        /,
        *,
        progress: float | None = None,
        teacher_signals: TeacherSignals | None = None,
        normalizer: Normalizer | None = None,
        labels: Any = None,
        **entries: Any,
    ) -> Distilled:
        """The loss of one batch.

        Args:
            batch: what the adapters take both models' inputs from; ``distiller(**batch)`` is the
                same. An entry that is None is absent; an entry ``teacher_signals`` is taken as the
                argument of that name. The teacher sees an entry ``teacher_x`` as
                ``x``, and labels only as ``teacher_labels``; one of several teachers sees
                ``teacher_<name>_x`` before these.
            progress: the part of training that is done, in [0, 1]; scheduled weights need it.
            teacher_signals: what :meth:`run_teacher` returned for these examples before; the
                teacher does not run. Of several teachers, name -> signals; those that are not
                among them run.
            normalizer: how much counts in the whole of which this batch is a part (other
                micro-batches, other ranks), term by term as :meth:`normalizer` returns it, or one
                number of examples; the losses of the parts then add up to that of the whole.
            labels: an entry of the batch, where it is given by keyword.
            entries: the other entries.
        """
        self._check_open()
        batch = one_batch(batch, entries, labels)
        used: set[str] = set()
        active = self.objective.active(progress)
        ran = self._run_teachers(batch, used, active, teacher_signals)
        taught = trackable(ran.signals) if torch.is_grad_enabled() else ran.signals
        own = SideOfBatch(batch, "student", used)
        output, student_signals = self._run_student(own, active)
        task = self._task(output, own, active)
        looked: dict[str, Comparison] | None = None
        if self.training:
            looked = self._checks.check_structure(
                self, self.student, student_signals, taught, active, own
            )
            if ran.all_here and ran.signals:
                every = len(active) == len(self.objective.each())
                self._checks.check_entries(batch, used, every_term=every)
        items, normalizer = self._items(own, output, task, normalizer)
        result = self.objective(
            student_signals, taught, batch=own, task=task, progress=progress,
            normalizer=normalizer, task_items=items, comparisons=looked, model=self.student,
        )  # fmt: skip
        if looked and _logger.isEnabledFor(logging.INFO):
            for line in counted_lines(looked):
                _logger.info("what counts of %s", line)
        loss = result.loss
        if dist.is_available() and dist.is_initialized() and loss.requires_grad:
            # the student's modules gather parameters, or are waited for, by way of its outputs
            loss = attach_to_outputs(loss, output)
        return Distilled(loss, result.parts, result.weights, student_signals, taught, result.counts)

    if TYPE_CHECKING:  # a module's call is Any to a checker, and stays it for `= forward`

        def __call__(
            self,
            batch: Mapping[str, Any] | None = None,
            /,
            *,
            progress: float | None = None,
            teacher_signals: TeacherSignals | None = None,
            normalizer: Normalizer | None = None,
            labels: Any = None,
            **entries: Any,
        ) -> Distilled: ...

    def _items(
        self, batch: SideOfBatch, output: Any, task: Tensor | None, normalizer: Normalizer | None
    ) -> tuple[Tensor | None, Normalizer | None]:
        """How many items the task's mean is over, where a normalizer asks for it."""
        if task is None or normalizer is None:
            return None, normalizer
        items = self._task_items.count(batch, output, task)
        if isinstance(normalizer, Mapping) or items is None:
            return items, normalizer
        if self._task_items.are_tokens(batch):
            raise RecipeError(
                "the task loss is a mean over tokens, so one number cannot normalise it beside "
                "terms over examples; pass a mapping, normalizer=distiller.normalizer(batches), "
                f"or the entry {ITEMS!r} that the student's own loss divides by"
            )
        return items, dict.fromkeys([term.name for term in self.objective.each()], normalizer)

    def run_teacher(self, batch: Mapping[str, Any]) -> Any:
        """The teacher's signals for a batch, without gradient: what is worth computing once.

        Of signals with layers it has those that the recipe compares. Of several teachers, all run:
        name -> :class:`Signals`.
        """
        self._check_open()
        names = self._teachers.names
        device = device_of(self.student)
        return self._teachers.run(checked_batch(batch), names, used=set(), device=device).signals

    def run_student(self, batch: Mapping[str, Any]) -> tuple[Any, Signals]:
        """The student's output and signals for a batch, without the teacher: for evaluation.

        The student is called with what it takes of the batch, as in a call of the distiller.
        """
        self._check_open()
        if gather_for(self, "run_student"):
            return self.run_student(batch)
        own = SideOfBatch(checked_batch(batch), "student")
        return self._student.run(own, wanted=self._wanted)

    def _run_student(self, own: SideOfBatch, active: Mapping[str, float]) -> tuple[Any, Signals]:
        """The student's output and signals, without logits where no active term needs them."""
        terms = [term for term in self.objective.each() if term.name in active]
        names = [one.student for term in terms for one in term.on]
        skip = not any(term.is_task for term in terms) and can_do_without_logits(names)
        # the backward of a sharded student passes by its outputs, of which logits may be the only
        skip = skip and not any(map(is_sharded, self.student.modules()))
        done = self._student.trace(own, wanted=self._wanted, skip_logits=skip)
        return done.output, done.signals

    def _student_to_show(self, own: SideOfBatch) -> Signals:
        """The student's signals with every layer, not only those of the recipe."""
        if gather_for(self, "_student_to_show"):
            return self._student_to_show(own)
        return self._student.signals(own)

    def _teacher_to_show(self, batch: Mapping[str, Any], name: str | None) -> Signals:
        """The signals of one teacher, with every layer of one that runs."""
        self._check_open()
        return self._teachers.one(name, batch, device_of(self.student))

    def student_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments that the student would be called with for a batch."""
        self._check_open()
        return self._student.arguments(SideOfBatch(checked_batch(batch), "student"))

    def _run_teachers(
        self,
        batch: Mapping[str, Any],
        used: set[str],
        active: Collection[str],
        known: TeacherSignals | None = None,
    ) -> Ran:
        """The signals of the teachers that terms in ``active`` learn from."""
        needed = self._teachers.needed(self.objective, active)
        device = device_of(self.student)
        return self._teachers.run(batch, needed, used=used, device=device, known=known)

    def normalizer(
        self, batches: Iterable[Mapping[str, Any]], *, progress: float | None = None
    ) -> dict[str, Tensor]:
        """How much counts in several batches together, on every rank: for ``normalizer=``.

        For accumulation over micro-batches, or ranks, of unequal size: pass the same to the call of
        each, and their losses add up to the loss of one big batch. It costs nothing where the
        batches alone tell: every term is ``per = "example"`` with a registered loss that has values
        of each example, reads no entry of the batch, and all entries have one first axis. Otherwise
        both models run once on each batch, without gradient.
        Where several processes work together, all of them call this, and the counts are divided by
        their number, since DDP averages gradients.

        Args:
            batches: the micro-batches of one step on this rank.
            progress: as for a call.

        Returns:
            Term -> count.
        """
        self._check_open()
        if gather_for(self, "normalizer"):
            return self.normalizer(batches, progress=progress)
        batches = [checked_batch(batch) for batch in batches]
        if not batches:
            raise SignalError("there is no batch to count in: pass the micro-batches of a step")
        active = self.objective.active(progress)
        terms = [term for term in self.objective.each() if term.name in active]
        adapter = self._student.adapter
        counts = [
            counts_without_models(terms, batch, self._task_items, adapter) for batch in batches
        ]
        # what one batch does not tell, models are run for, on every rank alike
        if any_rank_lacks(counts):
            with dry_run(self), torch.no_grad():
                counts = [self._counts(batch, progress) for batch in batches]
        totals: dict[str, Tensor] = {}
        for one in counts:
            for name, count in (one or {}).items():
                totals[name] = totals[name] + count if name in totals else count.double()
        return over_ranks(totals)

    def _counts(self, batch: Mapping[str, Any], progress: float | None) -> dict[str, Tensor]:
        """How much counts in one batch, by running both models."""
        own = SideOfBatch(batch, "student", set())
        active = self.objective.active(progress)
        teacher = self._run_teachers(batch, set(), active).signals
        output, student = self._run_student(own, active)
        task = self._task(output, own, active)
        items = None if task is None else self._task_items.count(own, output, task)
        result: Result = self.objective(
            student, teacher, batch=own, task=task, progress=progress, task_items=items
        )
        return result.counts

    def check(
        self, batch: Mapping[str, Any], *, teacher_signals: TeacherSignals | None = None
    ) -> Check:
        """A dry run on one batch, before any training: what each term will compare.

        Both models run once in eval mode; no parameter, no mode and no random state is changed.
        ``print(distiller.check(batch))`` shows, for every term, both sides' shapes and rows that
        count, the aligners, the value, and what is wrong with the aligner that would fix it.

        Args:
            batch: as for a call.
            teacher_signals: as for a call.
        """
        self._check_open()
        if gather_for(self, "check"):
            return self.check(batch, teacher_signals=teacher_signals)
        used: set[str] = set()
        batch = checked_batch(batch)
        terms, problems = self.objective.each(), []
        own = SideOfBatch(batch, "student", used)
        with dry_run(self), torch.inference_mode(mode=False), torch.enable_grad():
            ran = self._run_teachers(batch, used, self.objective.names, teacher_signals)
            taught = trackable(ran.signals)
            output, student_signals = self._student.run(own, wanted=self._wanted)
            seen = []
            for term in terms:
                if not term.is_task:
                    seen.append(check_term(term, student_signals, taught, own))
                    continue
                task = self.task_loss(output, own)
                missing = () if task is not None else ("the student's output has no field `loss`",)
                value = None if task is None else task.item()
                seen.append(TermCheck(term.name, value=value, problems=missing))
        if ran.all_here:
            try:
                self._checks.check_entries(batch, used, every_term=True)
            except DistillKitError as error:
                problems.append(str(error))
        offers = list_offers(terms, student_signals, taught)
        return Check(tuple(seen), tuple(problems), offers)

    def close(self) -> None:
        """Give both models back: no hooks, the teacher as trainable and in the modes as before.

        A later call is an error.
        """
        if self._closed:
            return
        self._closed = True
        if self._watched is not None:
            self._watched.close()
        if self._own_loss is not None:
            self._own_loss.put_back()
        self._teachers.close()

    def _check_open(self) -> None:
        if self._closed:
            raise CaptureError(
                "this distiller is closed: its models are no longer watched and its teacher no "
                "longer frozen; make another one, Distiller(student, teacher, recipe)"
            )

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Checkpoint the student, as a model of transformers does: its options are the student's.

        Raises:
            SignalError: the student has no such method.
        """
        self._on_student("gradient_checkpointing_enable")(**options)

    def gradient_checkpointing_disable(self) -> None:
        """Checkpoint the student no more."""
        self._on_student("gradient_checkpointing_disable")()

    def _on_student(self, method: str) -> Callable[..., Any]:
        found: Callable[..., Any] | None = getattr(self.student, method, None)
        if found is None:
            raise SignalError(f"the student, {type(self.student).__name__}, has no {method}()")
        return found

    def _build_aligners(self, example: Mapping[str, Any] | None) -> None:
        """Everything trainable exists after construction."""
        unbuilt = [term for term in self.objective.each() if not term.aligners.are_built]
        if example is None:
            waiting = [term.name for term in unbuilt if term.aligners.need_example]
            if waiting:
                raise RecipeError(
                    f"term {waiting[0]!r} has an aligner whose sizes are not known: name them in "
                    "the recipe, or pass a batch, Distiller(..., example=batch)"
                )
        if example is None or not unbuilt:
            return
        example = checked_batch(example)
        own = SideOfBatch(example, "student", set())
        with dry_run(self), torch.no_grad():
            student = self._student.run(own, wanted=self._wanted)[1]
        self.objective.build_aligners(student, self.run_teacher(example), own)

    def _task(
        self, output: Any, batch: Mapping[str, Any], active: Mapping[str, float]
    ) -> Tensor | None:
        asked = any(term.is_task and term.name in active for term in self.objective.each())
        return self.task_loss(output, batch) if asked else None

    def task_loss(self, output: Any, batch: Mapping[str, Any]) -> Tensor | None:
        """The student's own loss for what it returned, as a term ``"task"`` has it; None: none."""
        if self._given_task_loss is not None:
            return self._given_task_loss(output, batch)
        found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        return found if isinstance(found, Tensor) else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:  # noqa: FBT001, FBT002
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._teachers.move(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The contents of a copy or a pickle: the watch is made again around the copy."""
        state = {**vars(self)}
        state["_watched"] = None
        state["_own_loss"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if not self._closed:
            self._own_loss = OwnLoss(self.student)
