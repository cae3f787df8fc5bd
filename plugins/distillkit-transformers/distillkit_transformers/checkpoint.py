"""The files of a trainer's checkpoint: the student's own, and what its aligners have learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import distillkit as dk
from distillkit.errors import OptionError

ALIGNERS = "distillkit_aligners.safetensors"
"""The file of a checkpoint that holds what the aligners have learned."""


def load_student(student: PreTrainedModel, folder: Path) -> None:
    """Load a student's parameters as ``from_pretrained`` does, by the names of its files.

    Raises:
        OptionError: parameters that the folder does not hold.
    """
    kind: Any = type(student)
    loaded, report = kind.from_pretrained(
        folder, config=student.config, dtype=student.dtype, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise OptionError(
            f"the checkpoint {str(folder)!r} lacks {len(missing)} parameters of the student, "
            f"{kind.__name__}: {', '.join(missing[:3])} ... They would start at random; resume the "
            "student that the checkpoint was written for"
        )
    student.load_state_dict(loaded.state_dict())


def save_aligners(objective: dk.Objective, folder: Path) -> None:
    """Write what the aligners have learned into a folder; nothing where there are none."""
    state = objective.state_dict()
    if state:
        tensors = {name: x.detach().cpu().contiguous() for name, x in state.items()}
        save_file(tensors, folder / ALIGNERS, metadata={"format": "pt"})


def load_aligners(objective: dk.Objective, folder: Path) -> None:
    """Go on with what the aligners of a checkpoint have learned.

    Raises:
        OptionError: the checkpoint has none, or those of another recipe.
    """
    state = objective.state_dict()
    if not state:
        return
    path = folder / ALIGNERS
    if not path.is_file():
        raise OptionError(
            f"the checkpoint {str(folder)!r} has no {ALIGNERS}: it was written without a "
            "distiller, or by a recipe without aligners, so that this recipe's would start at "
            "random. "
            "Start anew, or load the student alone, from_pretrained, and train without "
            "resume_from_checkpoint"
        )
    found = load_file(path)
    shapes = {name: tuple(x.shape) for name, x in state.items()}
    saved = {name: tuple(x.shape) for name, x in found.items()}
    if saved != shapes:
        raise OptionError(
            f"{str(path)!r} holds aligners of another recipe: this one has {shapes}, the file "
            f"{saved}. Resume with the recipe that the checkpoint was written with"
        )
    objective.load_state_dict(found)
