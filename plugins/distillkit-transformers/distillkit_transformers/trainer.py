"""transformers' Trainer with a distiller: the student is trained, evaluated and saved as ever."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import distillkit as dk
from distillkit.errors import OptionError

from .model_card import distillation_section

if TYPE_CHECKING:
    from transformers.trainer_utils import EvalLoopOutput

    _Trainer = Trainer
else:
    _Trainer = object

ALIGNERS = "distillkit_aligners.safetensors"
"""The file of a checkpoint that holds what the aligners have learned."""


class DistillationMixin(_Trainer):
    """Distillation for one's own Trainer: ``class Mine(DistillationMixin, MyTrainer)``.

    The model of the trainer is the student; it is saved, loaded, evaluated and pushed as without a
    teacher. :class:`DistillationTrainer` says what changes.

    Args:
        student: the model that learns; ``model`` of a Trainer. None where ``model_init`` makes it.
        teacher: the model that is imitated, or None with ``distiller``.
        recipe: a recipe, its name or path, or an objective.
        distiller: a distiller of one's own, instead of student, teacher and recipe.
        student_adapter: as of :class:`distillkit.Distiller`.
        teacher_adapter: as of :class:`distillkit.Distiller`.
        task_loss: as of :class:`distillkit.Distiller`.
        ignore: as of :class:`distillkit.Distiller`.
        example: as of :class:`distillkit.Distiller`.
        evaluate_distillation: also run the teacher in evaluation, and report every term.
        args: as of Trainer.
        trainer: the other arguments of the Trainer, by keyword.

    Raises:
        OptionError: neither a distiller nor a student, a teacher and a recipe; more than one GPU
            in one process (``DataParallel``).
    """

    distiller: dk.Distiller

    def __init__(  # noqa: PLR0913 (a distiller's arguments and a Trainer's, by keyword)
        self,
        student: nn.Module | None = None,
        teacher: nn.Module | None = None,
        recipe: dk.Recipe | dk.Objective | str | Path | None = None,
        *,
        distiller: dk.Distiller | None = None,
        student_adapter: dk.Adapter | str | Path | None = None,
        teacher_adapter: dk.Adapter | str | Path | None = None,
        task_loss: Any = None,
        ignore: Iterable[str] = (),
        example: Mapping[str, Any] | None = None,
        evaluate_distillation: bool = False,
        args: TrainingArguments | None = None,
        **trainer: Any,
    ) -> None:
        if "model" in trainer:
            student = _only(student, trainer.pop("model"))
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
        self._normalizer: dict[str, Tensor] | None = None
        self._parts = 1
        self._meter, self._eval_meter = dk.Meter(), dk.Meter()
        super().__init__(model=distiller.student, args=_prepared(args), **trainer)
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
        _start_alike(self._aligner_parameters())

    # training

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """As of Trainer; the aligners, which no wrapper knows, are kept alike on all ranks."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            _average_gradients(self._aligner_parameters())
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of one step; how much counts in all of them together is worked out here."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._parts = max(1, len(samples))
        self._normalizer = None
        if len(samples) > 1 or self.args.world_size > 1:
            moved = [self._prepare_inputs(sample) for sample in samples]
            with self.compute_loss_context_manager():
                self._normalizer = self.distiller.normalizer(moved, progress=self._progress())
        return samples, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 (as Trainer has it)
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The distillation loss in training; in evaluation the student's own."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.distiller.student is not model:
            self.distiller.student = model  # wrapped by now, in DDP or a compiler
        self.distiller.train()
        result = self.distiller(inputs, progress=self._progress(), normalizer=self._normalizer)
        self._meter.add(result, parts=self._parts, summed=self._normalizer is not None)
        loss = result.loss if self._normalizer is not None else result.loss / self._parts
        return (loss, {"loss": loss}) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The student's optimizer, with what the aligners learn as a group of its own."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        learned = self._aligner_parameters()
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [p for p in learned if id(p) not in known]
        if missing and made:
            optimizer.add_param_group({"params": missing, "weight_decay": self.args.weight_decay})
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip what the optimizer steps, aligners included."""
        learned = self._aligner_parameters()
        if not learned or self._has_mixed_mesh_grads(model):
            return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        parameters = [*model.parameters(), *learned]
        return self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)

    def _progress(self) -> float:
        """The part of training that is done."""
        return min(1.0, self.state.global_step / max(1, self.state.max_steps))

    def _aligner_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.distiller.objective.parameters() if p.requires_grad]

    def _set_signature_columns_if_needed(self) -> None:
        """Also keep the columns that the teacher, the layouts and the terms read."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            own: list[str] = list(self._signature_columns or ())
            own += self._columns_of_distiller()
            self._signature_columns = own  # type: ignore[assignment]

    def _columns_of_distiller(self) -> list[str]:
        found = dict.fromkeys(sorted(self.distiller.entries))
        teacher = self.distiller.teacher
        if teacher is not None:
            taken = inspect.signature(teacher.forward).parameters
            found |= dict.fromkeys(name for name in taken if "label" not in name)
        return [*found, *(f"teacher_{name}" for name in (*found, "labels"))]

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
        with torch.no_grad(), self.compute_loss_context_manager():
            result = self.distiller(inputs, progress=self._progress())
        self._eval_meter.add(result.parts)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As of Trainer; with ``evaluate_distillation`` its metrics have every term."""
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
            means.pop("loss", None)
            logs.update(means)
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The student's files, and beside them what the aligners have learned."""
        super()._save(output_dir, state_dict)
        state = self.distiller.objective.state_dict()
        if state and self.args.should_save:
            folder = Path(output_dir or self.args.output_dir or "")
            tensors = {name: x.detach().cpu().contiguous() for name, x in state.items()}
            save_file(tensors, folder / ALIGNERS, metadata={"format": "pt"})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on with the aligners of the checkpoint, too."""
        if checkpoint is not None:
            self._load_aligners(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._load_aligners(self.state.best_model_checkpoint)

    def _load_aligners(self, folder: str) -> None:
        state = self.distiller.objective.state_dict()
        if not state:
            return
        path = Path(folder) / ALIGNERS
        if not path.is_file():
            raise OptionError(
                f"the checkpoint {folder!r} has no {ALIGNERS}: it was written without a distiller, "
                "or by another recipe, and what its aligners have learned is lost"
            )
        self.distiller.objective.load_state_dict(load_file(path))

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
      ``mask``), both models run once more for each accumulated batch, to count them.
    - Weights with a schedule follow the trainer's own progress. Every part and weight is logged,
      averaged over steps and processes.
    - What aligners learn is in the optimizer, is clipped, synchronised, saved and resumed.
    - Columns that the teacher, the token layouts or the terms read are kept.
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


def _only(student: nn.Module | None, model: nn.Module | None) -> nn.Module | None:
    if student is not None and model is not None:
        raise OptionError("`student` and `model` are the same argument; give one of them")
    return model if student is None else student


def _prepared(args: TrainingArguments | None) -> TrainingArguments:
    """Trainer's arguments; checkpointing keeps the gradient of what is captured."""
    if args is None:
        args = TrainingArguments("tmp_trainer")
    if args.gradient_checkpointing and args.gradient_checkpointing_kwargs is None:
        args.gradient_checkpointing_kwargs = {"use_reentrant": False}
    return args


def _start_alike(parameters: list[nn.Parameter]) -> None:
    """Give every rank the first one's parameters."""
    if _several_ranks():
        for parameter in parameters:
            dist.broadcast(parameter.data, src=0)


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over ranks, also where one rank has none; in the same order on all."""
    if _several_ranks():
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(dist.get_world_size())


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
