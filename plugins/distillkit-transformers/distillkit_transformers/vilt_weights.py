"""From the weights of one ViLT to those of two towers, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from distillkit.errors import OptionError

_RANDOM = ("fusion.", "classifier.", "rank_output.")
_TEXT = "embeddings.text_embeddings."
_TYPES = "embeddings.token_type_embeddings.weight"


def load_towers(student: Any, source: nn.Module) -> None:
    """Start a student's towers with the weights of a ViLT, or of another student.

    Raises:
        OptionError: a source that lacks what a tower needs.
    """
    if hasattr(source, "text") and hasattr(source, "image"):
        state = {name: x for name, x in source.state_dict().items() if not _is_random(name)}
        state["image.embeddings.token_type.weight"] = _first_type(
            state["image.embeddings.token_type.weight"], 0, student
        )
        if student.config.task != "pretraining":
            state = {name: x for name, x in state.items() if not name.startswith("mlm_score.")}
    else:
        state = dict(_of_vilt(student, source))
    missing, unexpected = student.load_state_dict(state, strict=False)
    missing = [name for name in missing if not _is_random(name)]
    if missing or unexpected:
        raise OptionError(
            f"{type(source).__name__} does not fit the student: "
            f"{', '.join(sorted(missing)[:3]) or 'nothing'} would start at random, and "
            f"{', '.join(sorted(unexpected)[:3]) or 'nothing'} has no place. A student of the task "
            "'pretraining' starts from a ViltForMaskedLM, any other from a ViLT with a pooler"
        )


def _is_random(name: str) -> bool:
    return name.startswith(_RANDOM)


def _of_vilt(student: Any, source: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The student's names with the weights of a ViLT."""
    backbone: nn.Module = getattr(source, "vilt", source)
    for name, x in backbone.state_dict().items():
        if name.startswith(_TEXT):
            yield f"text.embeddings.{name.removeprefix(_TEXT)}", x
        elif name == _TYPES:
            yield "text.token_type.weight", x[:1]
            yield "image.embeddings.token_type.weight", _first_type(x, 1, student)
        elif name.startswith("embeddings."):
            yield f"image.{name}", x
        else:
            yield f"text.{name}", x
            yield f"image.{name}", x
    if student.config.task == "pretraining":
        for name, x in source.state_dict().items():
            if name.startswith("mlm_score."):
                yield name, x


def _first_type(types: Tensor, row: int, student: Any) -> Tensor:
    """The token type of a first image, once for every image of an example."""
    return types[row : row + 1].repeat(student.config.image_types, 1)
