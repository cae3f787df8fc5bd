"""A LightningModule around a distiller: trained, evaluated and saved as the student alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

import distillkit as dk
from distillkit.errors import OptionError

from .state import add_prefix, drop_prefix

Metrics = Callable[[Any, Mapping[str, Any]], Mapping[str, Tensor | float]]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Any]


class DistillationModule(lightning.LightningModule):
    """A student, a frozen teacher and a recipe, as a module for ``lightning.Trainer``.

    - Weights with a schedule follow the trainer's own progress.
    - The loss, every part and every weight are logged as ``train/...`` each
      ``log_every_n_steps``: means over the steps since the last log, and over ranks. The progress
      bar shows the loss and the parts.
    - Validation and test run the student alone, and predict returns what it returns.
    - A checkpoint holds the student and the aligners under the keys of a distiller's own
      ``state_dict()``; the teacher is in none.
    - The teacher stays in eval mode, moves with the module, and is shared by copies of it, such as
      the average of lightning's ``WeightAveraging``.

    The gradient of an accumulated step, and of several ranks, is the mean over its batches, which
    is that of one big batch where the batches are of equal size. Where they are not, ``normalizer``
    says how much counts in one step.

    Args:
        student: the model that learns.
        teacher: the model that is imitated, or a cache of its signals; None where the batches bring
            them (:meth:`distillkit.SignalCache.joining`).
        recipe: a recipe, its name or path, or an objective.
        distiller: a distiller of one's own, instead of student, teacher and recipe.
        optimizer: from the parameters that learn, aligners included, to whatever
            ``configure_optimizers`` may return: an optimizer, or one with its scheduler.
        metrics: ``metrics(output, batch)`` -> name -> value, logged in validation and test.
        evaluate_distillation: also run the teacher in validation and test, and log every term.
        run_log: where what is logged is also written, for ``python -m distillkit report``; a
            folder, or a :class:`distillkit.RunLog` of one's own, which may watch examples.
        normalizer: how much counts in one optimizer step, divided by the number of ranks: one
            number of examples, or term -> count, as a distiller's call takes it.
        student_adapter: as of :class:`distillkit.Distiller`.
        teacher_adapter: as of :class:`distillkit.Distiller`.
        task_loss: as of :class:`distillkit.Distiller`.
        ignore: as of :class:`distillkit.Distiller`.
        example: as of :class:`distillkit.Distiller`.

    Raises:
        OptionError: neither a distiller nor a student and a recipe, or both.

    Examples:
        >>> def train(student, teacher, loader):
        ...     module = DistillationModule(student, teacher, "dide")
        ...     lightning.Trainer(max_epochs=3).fit(module, loader)
    """

    def __init__(  # noqa: PLR0913 (a distiller's arguments, and what a loop decides)
        self,
        student: nn.Module | None = None,
        teacher: nn.Module | dk.SignalCache | None = None,
        recipe: dk.Recipe | dk.Objective | str | Path | None = None,
        *,
        distiller: dk.Distiller | None = None,
        optimizer: MakeOptimizer = torch.optim.AdamW,
        metrics: Metrics | None = None,
        evaluate_distillation: bool = False,
        run_log: dk.RunLog | str | Path | None = None,
        normalizer: float | Mapping[str, float | Tensor] | None = None,
        student_adapter: dk.Adapter | str | Path | None = None,
        teacher_adapter: dk.Adapter | str | Path | None = None,
        task_loss: Callable[[Any, Mapping[str, Any]], Tensor] | None = None,
        ignore: Iterable[str] = (),
        example: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if distiller is None:
            if student is None or recipe is None:
                raise OptionError(
                    "DistillationModule takes a student, a teacher and a recipe, or a distiller="
                )
            distiller = dk.Distiller(
                student, teacher, recipe, student_adapter=student_adapter,
                teacher_adapter=teacher_adapter, task_loss=task_loss, ignore=ignore,
                example=example,
            )  # fmt: skip
        elif student is not None or teacher is not None or recipe is not None:
            raise OptionError("a distiller brings its own student, teacher and recipe")
        self.distiller = distiller
        self._make_optimizer, self._metrics = optimizer, metrics
        self._with_teacher, self._normalizer = evaluate_distillation, normalizer
        self._run_log = dk.RunLog(run_log) if isinstance(run_log, (str, Path)) else run_log
        self._meter, self._logged_step = dk.Meter(), 0
        self.register_state_dict_post_hook(drop_prefix)
        self.register_load_state_dict_pre_hook(add_prefix)

    @property
    def student(self) -> nn.Module:
        """The model that learns."""
        return self.distiller.student

    @property
    def objective(self) -> dk.Objective:
        """The terms, with their aligners."""
        return self.distiller.objective

    @property
    def progress(self) -> float | None:
        """The part of training that is done, by the trainer's steps; None: nobody knows the end."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            return 1.0
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            return None
        done: float = self.trainer.global_step / steps
        return min(1.0, done)

    def forward(self, batch: Mapping[str, Any]) -> Any:
        """What the student returns for a batch, called with what it takes of it."""
        return self.distiller.run_student(batch)[0]

    def training_step(self, batch: Mapping[str, Any], *_: Any) -> Tensor:
        """The loss of one batch."""
        if self._run_log is not None:
            self._run_log.begin(self.distiller, batch)
        parts = self.trainer.accumulate_grad_batches
        is_share = self._normalizer is not None
        result = self.distiller(batch, progress=self.progress, normalizer=self._normalizer)
        self._meter.add(result, parts=parts, summed=is_share)
        loss: Tensor = result.loss
        # lightning divides by the number of accumulated batches, and a share is divided already
        return loss * parts if is_share else loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Log the means since the last log, on the steps on which the trainer logs."""
        step = self.trainer.global_step
        every = self.trainer.log_every_n_steps
        if every and step != self._logged_step and step % every == 0:
            self._logged_step = step
            self._log_means(on_step=True, on_epoch=False)

    def on_train_epoch_end(self) -> None:
        """Log what is left of an epoch."""
        self._log_means(on_step=False, on_epoch=True, sync_dist=True)

    def _log_means(self, *, on_step: bool, on_epoch: bool, sync_dist: bool = False) -> None:
        """Log the means since the last call; the progress bar shows the loss and the parts."""
        means = self._meter.means()
        for name, value in means.items():
            self.log(
                f"train/{name}", value, prog_bar=not name.startswith("weight/"),
                on_step=on_step, on_epoch=on_epoch, sync_dist=sync_dist,
            )  # fmt: skip
        if self._run_log is not None and means:
            self._write_log(self._run_log, means)

    def _write_log(self, run_log: dk.RunLog, means: Mapping[str, float]) -> None:
        """Write a line of the run's log; readings of watched examples go to the loggers, too."""
        values = {**means, **_learning_rates(self.trainer.optimizers)}
        step = self.trainer.global_step
        readings = {f"train/{n}": x for n, x in run_log.write(values, step=step).items()}
        # self.log would repeat them on every step until the next look; loggers count from 0
        for logger in self.trainer.loggers if readings else ():
            logger.log_metrics(readings, step=max(0, step - 1))

    def on_validation_epoch_end(self) -> None:
        """Write what validation found into the run's log."""
        trainer = self.trainer
        if (
            self._run_log is None
            or trainer.state.fn != TrainerFn.FITTING
            or trainer.sanity_checking
        ):
            return
        found = {n: x for n, x in trainer.callback_metrics.items() if n.startswith("val/")}
        if found:
            self._run_log.write(found, step=trainer.global_step)

    def on_fit_end(self) -> None:
        """Say in the run's log that the training is over."""
        if self._run_log is not None:
            self._run_log.end()

    def validation_step(self, batch: Mapping[str, Any], *_: Any) -> None:
        """The student's own loss and metrics."""
        self._evaluate("val", batch)

    def test_step(self, batch: Mapping[str, Any], *_: Any) -> None:
        """The student's own loss and metrics."""
        self._evaluate("test", batch)

    def predict_step(self, batch: Mapping[str, Any], *_: Any) -> Any:
        """What the student returns."""
        return self(batch)

    def _evaluate(self, stage: str, batch: Mapping[str, Any]) -> None:
        values: dict[str, Tensor | float] = {}
        output = self(batch)
        own = self.distiller.task_loss(output, batch)
        if own is not None:
            values["loss"] = own
        if self._metrics is not None:
            values.update(self._metrics(output, batch))
        if self._with_teacher:
            values.update(self.distiller(batch, progress=self.progress).parts)
        examples = next(len(x) for x in batch.values() if isinstance(x, Tensor) and x.ndim > 0)
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self.log_dict(named, on_epoch=True, sync_dist=True, batch_size=examples)

    def configure_optimizers(self) -> Any:
        """The optimizer, over what the student and the aligners learn."""
        return self._make_optimizer([p for p in self.parameters() if p.requires_grad])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with a student of its own and the same teachers, which never learn."""
        for teacher in self.distiller.teachers.values():
            memo[id(teacher)] = teacher
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made


def _learning_rates(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, float]:
    """The learning rate of each optimizer's first group, as Trainer calls it."""
    rates = [one.param_groups[0]["lr"] for one in optimizers]
    names = [f"learning_rate/{i}" for i in range(len(rates))]
    return dict(zip(["learning_rate"] if len(rates) == 1 else names, rates, strict=True))
