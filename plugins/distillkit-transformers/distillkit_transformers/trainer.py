"""transformers' Trainer with a distiller: the student is trained, evaluated and saved as ever."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import find_batch_size

import distillkit as dk
from distillkit.errors import OptionError

from .arguments import check_arguments, only_model
from .checkpoint import load_aligners, load_student, save_aligners
from .learned import average_gradients, learned_parameters, start_alike
from .model_card import distillation_section

if TYPE_CHECKING:
    from transformers.trainer_utils import EvalLoopOutput

    _Trainer = Trainer
else:
    _Trainer = object


class DistillationMixin(_Trainer):
    """Distillation for one's own Trainer: ``class Mine(DistillationMixin, MyTrainer)``.

    The model of the trainer is the student; it is saved, loaded, evaluated and pushed as without a
    teacher. :class:`DistillationTrainer` says what changes.

    Args:
        student: the model that learns; ``model`` of a Trainer. None with ``distiller``.
        teacher: the model that is imitated, or a cache of its signals; None with ``distiller``, and
            where a collator brings the signals (:meth:`distillkit.SignalCache.joining`).
        recipe: a recipe, its name or path, or an objective.
        distiller: a distiller of one's own, instead of student, teacher and recipe.
        student_adapter: as of :class:`distillkit.Distiller`.
        teacher_adapter: as of :class:`distillkit.Distiller`.
        task_loss: as of :class:`distillkit.Distiller`.
        ignore: as of :class:`distillkit.Distiller`.
        example: as of :class:`distillkit.Distiller`.
        evaluate_distillation: also run the teacher in evaluation, and report every term.
        run_log: where every log is also written for ``python -m distillkit report``; a folder, or a
            :class:`distillkit.RunLog` of one's own, which may watch examples.
        args: as of Trainer.
        trainer: the other arguments of the Trainer, by keyword.

    Raises:
        OptionError: neither a distiller nor a student, a teacher and a recipe; more than one GPU
            in one process (``DataParallel``); what would be ignored in training (``model_init``,
            ``compute_loss_func``, label smoothing).
    """

    distiller: dk.Distiller

    def __init__(  # noqa: PLR0913 (a distiller's arguments and a Trainer's, by keyword)
        self,
        student: nn.Module | None = None,
        teacher: nn.Module | dk.SignalCache | None = None,
        recipe: dk.Recipe | dk.Objective | str | Path | None = None,
        *,
        distiller: dk.Distiller | None = None,
        student_adapter: dk.Adapter | str | Path | None = None,
        teacher_adapter: dk.Adapter | str | Path | None = None,
        task_loss: Any = None,
        ignore: Iterable[str] = (),
        example: Mapping[str, Any] | None = None,
        evaluate_distillation: bool = False,
        run_log: dk.RunLog | str | Path | None = None,
        args: TrainingArguments | None = None,
        **trainer: Any,
    ) -> None:
        check_arguments(args, trainer)
        if "model" in trainer:
            student = only_model(student, trainer.pop("model"))
        if distiller is None:
            if student is None or recipe is None:
                raise OptionError(
                    "DistillationTrainer takes a student, a teacher and a recipe, or a distiller="
                )
            distiller = dk.Distiller(
                student, teacher, recipe, student_adapter=student_adapter,
                teacher_adapter=teacher_adapter, task_loss=task_loss, ignore=ignore,
                example=example,
            )  # fmt: skip
        elif student is not None or teacher is not None or recipe is not None:
            raise OptionError("a distiller brings its own student, teacher and recipe")
        self.distiller = distiller
        self._with_teacher = evaluate_distillation
        self._run_log = dk.RunLog(run_log) if isinstance(run_log, (str, Path)) else run_log
        self._normalizer: dict[str, Tensor] | None = None
        self._parts = 1
        self._unfound: Any = None
        self._meter, self._eval_meter = dk.Meter(), dk.Meter()
        super().__init__(model=distiller.student, args=args, **trainer)
        # the loss of a part is its share of the whole step's already
        self.loss_is_scaled_for_ga = True
        if self.args.n_gpu > 1:
            raise OptionError(
                f"this process sees {self.args.n_gpu} GPUs, and Trainer would copy the student to "
                "each (DataParallel), where nothing can be captured. Start one process for each, "
                "`torchrun --nproc-per-node=...`, or show it one, CUDA_VISIBLE_DEVICES=0"
            )
        if self.place_model_on_device:
            distiller.to(self.args.device)
        start_alike(learned_parameters(distiller.objective))

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """As of Trainer; teacher and aligners go where the student goes."""
        super()._move_model_to_device(model, device)
        self.distiller.to(device)

    # training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As of Trainer. Afterwards ``distiller.student`` is the model again, without a wrapper."""
        self._meter = dk.Meter()
        try:
            output = super().train(*args, **kwargs)
        finally:
            self.distiller.student = self.model  # type: ignore[assignment]
        if self._run_log is not None:
            self._run_log.end()
        return output

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """As of Trainer; the aligners, which no wrapper knows, are kept alike on all ranks."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            average_gradients(learned_parameters(self.distiller.objective))
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of one step; how much counts in all of them together is worked out here."""
        self.distiller.objective.zero_grad()  # Trainer clears the gradients of the student alone
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._parts = max(1, len(samples))
        self._normalizer = None
        if samples and (len(samples) > 1 or self.args.world_size > 1):
            samples = [self._prepare_inputs(sample) for sample in samples]
            with self.accelerator.autocast():
                self._normalizer = self.distiller.normalizer(samples, progress=self._progress())
        return samples, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 (as Trainer has it)
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The distillation loss in training; in evaluation the student's own.

        In training the outputs are what the distiller returned, :class:`distillkit.Distilled`.
        """
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._run_log is not None:
            with self.accelerator.autocast():  # looks at the student before it is wrapped
                self._run_log.begin(self.distiller, inputs)
        if self.distiller.student is not model:
            self.distiller.student = model  # wrapped by now, in DDP or a compiler
        self.distiller.train()
        with self.accelerator.autocast():  # for the teacher: accelerate wraps the student alone
            result = self.distiller(inputs, progress=self._progress(), normalizer=self._normalizer)
        self._meter.add(result, parts=self._parts, summed=self._normalizer is not None)
        return (result.loss, result) if return_outputs else result.loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The student's optimizer, with what the aligners learn as groups of their own."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        objective = self.distiller.objective
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if made:
            decaying = set(self.get_decay_parameter_names(objective))
            groups: dict[float, list[nn.Parameter]] = {self.args.weight_decay: [], 0.0: []}
            for name, parameter in objective.named_parameters():
                if parameter.requires_grad and id(parameter) not in known:
                    groups[self.args.weight_decay if name in decaying else 0.0].append(parameter)
            for decay, parameters in groups.items():
                if parameters:
                    optimizer.add_param_group({"params": parameters, "weight_decay": decay})
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip what the optimizer steps, aligners included."""
        learned = learned_parameters(self.distiller.objective)
        if not learned or self._has_mixed_mesh_grads(model):
            return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        parameters = [*model.parameters(), *learned]
        return self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)

    def _progress(self) -> float:
        """The part of training that is done."""
        return min(1.0, self.state.global_step / max(1, self.state.max_steps))

    def _set_signature_columns_if_needed(self) -> None:
        """Also keep the columns that the teacher, the layouts, the terms and a Collator read."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            names = [*(self._signature_columns or ()), *self._columns_of_distiller()]
            sides = ["student", "teacher", *(f"teacher_{name}" for name in self.distiller.teachers)]
            own = [f"{side}_{name}" for side in sides for name in names]
            collated = getattr(self.data_collator, "columns", ())
            kept = dict.fromkeys([*names, *own, "teacher_labels", *collated])
            self._signature_columns = list(kept)  # type: ignore[assignment]

    def _columns_of_distiller(self) -> list[str]:
        found = sorted(self.distiller.entries)
        for model in self.distiller.teachers.values():
            teacher: Any = model
            if hasattr(teacher, "get_base_model"):  # PEFT's forward names nothing
                teacher = teacher.get_base_model()
            taken = inspect.signature(teacher.forward).parameters
            found += [name for name in taken if "label" not in name]
        return found

    # evaluation

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,  # noqa: FBT001 (as Trainer has it)
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The student's own output and loss; the teacher's entries stay out of it."""
        if self._with_teacher:
            self._evaluate_terms(self._prepare_inputs(inputs))
        own = self.distiller.student_inputs(inputs)
        labels = {name: inputs[name] for name in self.label_names if name in inputs}
        return super().prediction_step(model, {**own, **labels}, prediction_loss_only, ignore_keys)

    def _evaluate_terms(self, inputs: Mapping[str, Any]) -> None:
        self.distiller.eval()
        with torch.no_grad(), self.accelerator.autocast():
            result = self.distiller(inputs, progress=self._progress())
        values = {**result.parts, "distillation_loss": result.loss}
        self._eval_meter.add(values, weight=find_batch_size(inputs) or 1)  # type: ignore[no-untyped-call]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As of Trainer; with ``evaluate_distillation`` its metrics have every term and their sum.

        Means are over examples; the sum of the weighted terms is ``eval_distillation_loss``.
        """
        self._eval_meter = dk.Meter()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        means = self._eval_meter.means() if self._with_teacher else {}
        metrics = {**(output.metrics or {}), **{f"{prefix}_{n}": x for n, x in means.items()}}
        return output._replace(metrics=metrics)

    # logs and files

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As of Trainer, with every part and weight: means over the steps since the last log."""
        if "loss" in logs:
            means = self._meter.means()
            # Trainer's own loss is rounded, and leaves out what is not finite
            loss = means.pop("loss", logs["loss"])
            logs.update(means)
            self._write_log({**logs, "loss": loss}, logs)
        elif "train_runtime" not in logs:  # an evaluation's, without how fast it was
            own = {n: x for n, x in logs.items() if not n.endswith(("_runtime", "_per_second"))}
            self._write_log(own, logs)
        super().log(logs, start_time)

    def _write_log(self, values: Mapping[str, float], logs: dict[str, float]) -> None:
        """Write a line of the run's log; readings of watched examples go into Trainer's too."""
        if self._run_log is None:
            return
        numbers = {name: x for name, x in values.items() if isinstance(x, (int, float, Tensor))}
        with self.accelerator.autocast():
            self._run_log.begin(self.distiller)  # an evaluation may come before any training
            logs.update(self._run_log.write(numbers, step=self.state.global_step))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The student's files, and beside them what the aligners have learned."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_aligners(self.distiller.objective, Path(output_dir or self.args.output_dir or ""))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As of Trainer, but every parameter is found."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_unfound(resume_from_checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Take note of the parameters that Trainer did not find in a checkpoint."""
        self._unfound = load_result if any(load_result) else None

    def _load_unfound(self, folder: str) -> None:
        # save_pretrained writes the names of the hub, and Trainer looks for those of the model: of
        # most vision-language models it would find some or none, and go on with a warning
        # (https://github.com/huggingface/transformers/issues/43701)
        if self._unfound is None:
            return
        if isinstance(self.model, PreTrainedModel):
            load_student(self.model, Path(folder))
        else:
            super()._issue_warnings_after_load(self._unfound)
        self._unfound = None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on with the aligners of the checkpoint, too."""
        if checkpoint is not None:
            load_aligners(self.distiller.objective, Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._load_unfound(self.state.best_model_checkpoint)
            load_aligners(self.distiller.objective, Path(self.state.best_model_checkpoint))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As of Trainer, with the recipe, its terms and what to cite."""
        super().create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir or "") / "README.md"
        if self.is_world_process_zero() and path.is_file():
            section = distillation_section(self.distiller)
            path.write_text(f"{path.read_text(encoding='utf-8')}\n{section}", encoding="utf-8")


class DistillationTrainer(DistillationMixin, Trainer):
    """A ``transformers.Trainer`` whose loss is a distiller's.

    It differs from Trainer in this alone:

    - The loss of a step is that of a distiller, and equals the loss of one big batch whatever the
      accumulation and the number of processes. Where a term counts positions (``per = "row"``,
      ``mask``) or its loss has one value for a batch, both models run once more for each
      accumulated batch, to count them.
    - Weights with a schedule follow the trainer's own progress. Every part and weight is logged,
      averaged over steps and processes.
    - What aligners learn is in the optimizer, is clipped, synchronised, saved and resumed.
    - Columns that the teacher, the token layouts or the terms read are kept.
    - A checkpoint is loaded as ``from_pretrained`` does, so that every parameter is found.
    - Evaluation and prediction are the student's own, without the teacher, unless asked.

    Saved, pushed and loaded is the student alone, with its own keys.

    Examples:
        >>> from transformers import TrainingArguments
        >>> def train(student, teacher, dataset):
        ...     args = TrainingArguments("out", per_device_train_batch_size=8)
        ...     trainer = DistillationTrainer(
        ...         student, teacher, "dide", args=args, train_dataset=dataset
        ...     )
        ...     trainer.train()
    """
