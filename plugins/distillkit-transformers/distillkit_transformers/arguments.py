"""The arguments of a trainer that distils: what is given twice, and what would be ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn

from distillkit.errors import OptionError


def only_model(student: nn.Module | None, model: nn.Module | None) -> nn.Module | None:
    """The student, given under its own name or as Trainer's ``model``.

    Raises:
        OptionError: it is given twice.
    """
    if student is not None and model is not None:
        raise OptionError("`student` and `model` are the same argument; give one of them")
    return model if student is None else student


def check_arguments(
    args: transformers.TrainingArguments | None, trainer: Mapping[str, Any]
) -> None:
    """Refuse what a Trainer would do in training and this one would not.

    Raises:
        OptionError: the argument, and what does the same; a Trainer that is too old.
    """
    if not hasattr(transformers.Trainer, "loss_is_scaled_for_ga"):
        raise OptionError(
            f"transformers {transformers.__version__} has a Trainer that divides every loss by the "
            "accumulated batches, which cannot be of unequal size then: pip install "
            "'distillkit-transformers[trainer]'"
        )
    if trainer.get("model_init") is not None:
        raise OptionError(
            "model_init makes a student for each run, but aligners and the watch of a distiller "
            "belong to one: pass the student, and make a trainer for each run"
        )
    if trainer.get("compute_loss_func") is not None:
        raise OptionError(
            "compute_loss_func would be ignored: the loss is the recipe's. Add the term "
            '{"loss": "task"} and pass task_loss=lambda output, batch: ...'
        )
    if args is not None and args.label_smoothing_factor != 0:
        raise OptionError(
            f"label_smoothing_factor={args.label_smoothing_factor} would be ignored in training: "
            'the loss is the recipe\'s. Add the term {"loss": "task"} and pass '
            "task_loss=lambda output, batch: ..., which smooths, or set it to 0"
        )
