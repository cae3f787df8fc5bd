"""Where the viewer's signals come from: a distiller, signals, or attentions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .._attention import Attention
from .._backbone.axis import TokenAxis
from .._backbone.batch import SideOfBatch, checked_batch
from .._backbone.signals import Signals
from .._capture.wrappers import layers_of, unwrapped
from .._objective.distiller import Distiller
from ..errors import OptionError, ShapeError, SignalError

Side: TypeAlias = "Signals | Attention | Sequence[Attention]"
Batch: TypeAlias = "Mapping[str, Any]"

_TAKES = (
    "view takes a Distiller and a batch, Signals, an Attention or a sequence of them (its layers), "
    "or a mapping from the name of a checkpoint to one of these"
)


class Sources(NamedTuple):
    """Both sides of a comparison.

    Attributes:
        checkpoints: name -> the student's signals.
        teacher: the teacher's signals; None: the student is shown alone.
        batch: the batch as the student saw it; empty where none was given.
    """

    checkpoints: Mapping[str, Signals]
    teacher: Signals | None
    batch: Batch


class Given(NamedTuple):
    """What attentions without token axes are explained by.

    Attributes:
        words: each example's tokens; None: they are not words.
        has_images: whether images were given.
    """

    words: Sequence[Sequence[str]] | None
    has_images: bool


def sources_of(student: Any, teacher: Any, batch: Batch | None, given: Given) -> Sources:
    """Both sides as signals, with what is known of their tokens.

    Raises:
        OptionError: arguments that do not go together.
        ShapeError: attentions alone whose tokens the words and images do not explain.
    """
    if isinstance(student, nn.Module):
        distiller = _distiller_in(student)
        if teacher is not None and not isinstance(teacher, str):
            raise OptionError(
                "a distiller brings its teacher: view(distiller, batch=batch); of several, name "
                "one, view(distiller, name, batch=batch)"
            )
        if batch is None:
            raise OptionError("a distiller is shown on a batch: view(distiller, batch=batch)")
        return _of_distiller(distiller, teacher, batch)
    named = {"": student}
    if isinstance(student, Mapping) and not isinstance(student, Signals):
        named = {str(name): one for name, one in student.items()}
        if not named:
            raise OptionError(f"there is no checkpoint to show; {_TAKES}")
    checkpoints = {name: _as_signals(one, given) for name, one in named.items()}
    theirs = None if teacher is None else _as_signals(teacher, given)
    return Sources(checkpoints, theirs, {} if batch is None else SideOfBatch(batch, "student"))


def _distiller_in(module: nn.Module) -> Distiller:
    """A distiller, out of DDP, ``torch.compile`` and other wrappers."""
    for one in layers_of(module):
        if isinstance(one, Distiller):
            return one
        if type(one).__name__ == "FullyShardedDataParallel":
            raise OptionError(
                "FullyShardedDataParallel (FSDP1) gathers parameters only while it runs itself, so "
                "that the viewer cannot run the distiller in it; use fully_shard (FSDP2), or load "
                "a checkpoint into a distiller that is not wrapped"
            )
    raise OptionError(
        f"{_TAKES}; got the model {type(unwrapped(module)).__name__}, whose signals are "
        "distillkit.Backbone(model).signals(batch)"
    )


def _of_distiller(distiller: Distiller, teacher: str | None, batch: Batch) -> Sources:
    """One forward of each side in eval mode, every layer of it kept."""
    batch = checked_batch(batch)
    view = SideOfBatch(batch, "student")
    modes = {module: module.training for module in distiller.student.modules()}
    distiller.student.eval()
    try:
        with torch.no_grad():
            theirs = distiller._teacher_to_show(batch, teacher)
            student = distiller._student_to_show(view)
    finally:
        for module, training in modes.items():
            module.training = training
    return Sources({"": student}, theirs, view)


def _as_signals(value: Any, given: Given) -> Signals:
    if isinstance(value, Signals):
        return value
    layers = [value] if isinstance(value, Attention) else value
    is_sequence = isinstance(layers, Sequence) and not isinstance(layers, str)
    if not is_sequence or not all(isinstance(one, Attention) for one in layers) or not layers:
        raise OptionError(f"{_TAKES}; got {type(value).__name__}")
    shapes = {one.shape[0:1] + one.shape[2:] for one in layers}
    if len(shapes) > 1:
        raise ShapeError(
            "the layers to show are of the same examples and tokens; got "
            + ", ".join(map(str, layers))
        )
    axes = _axes_of(layers[0].shape, given)
    names = [axis.modality for axis in axes]
    name = names[0] if names[0] == names[1] else "_to_".join(names)
    return Signals({f"attention.{name}": list(layers)}, axes={f"attention.{name}": axes})


def _axes_of(shape: Sequence[int], given: Given) -> tuple[TokenAxis, TokenAxis]:
    """The tokens of attentions alone: words where there are as many, else patches."""
    b, _, q, k = shape
    words, has_images = given
    if words is None and not has_images:
        raise OptionError(
            "an Attention alone does not know its tokens: give words= (rows or keys are words), "
            "images= (they are patches), or Signals with axes="
        )
    if words is None:
        return _patches(q), _patches(k)
    longest = max(map(len, words), default=0)
    if not has_images:
        return _words(words, b, q), _words(words, b, k)
    if longest == q:  # also where there are as many words as patches: rows are words
        return _words(words, b, q), _patches(k)
    if longest == k:
        return _patches(q), _words(words, b, k)
    raise ShapeError(
        f"neither rows nor keys of (b, h, q, k) = {tuple(shape)} are {longest} words, which is the "
        "longest example of words=; give every token a word, special ones too"
    )


def _words(words: Sequence[Sequence[str]], b: int, count: int) -> TokenAxis:
    if len(words) != b or max(map(len, words), default=0) > count:
        raise ShapeError(
            f"words= names the tokens of each example: {b} lists of up to {count}; got "
            f"{len(words)} of up to {max(map(len, words), default=0)}"
        )
    lengths = torch.tensor([len(one) for one in words], dtype=torch.long)
    valid: Tensor = torch.arange(count) < lengths[:, None]
    return TokenAxis("text", valid)


def _patches(count: int) -> TokenAxis:
    """A square grid, behind a class token where one is over."""
    for special in (0, 1):
        side = isqrt(max(0, count - special))
        if side > 0 and side * side == count - special:
            return TokenAxis("image", special=tuple(range(special)), grid=(side, side))
    raise ShapeError(
        f"{count} patches are no square grid, with or without a class token; say where they sit: "
        'Signals({"attention.image": layers}, axes={"attention.image": (axis, axis)}) with axis = '
        'TokenAxis("image", grid=(rows, columns), special=(0,))'
    )


ALL = "all"
"""Every attention that both sides have."""


def shown_names(
    student: Signals, teacher: Signals | None, asked: Sequence[str] | str | None
) -> Sequence[str]:
    """The attention signals to show: those asked for, or between modalities, or of one.

    Raises:
        OptionError: neither a list nor "all".
        SignalError: there is none that both sides have.
    """
    if isinstance(asked, str) and asked != ALL:
        raise OptionError(f'signals= is a list of names, [{asked!r}], or "all"; got {asked!r}')
    sides = [student] if teacher is None else [student, teacher]
    if asked is not None and asked != ALL:
        for name in asked:
            for side in sides:
                if name not in side or not name.startswith("attention."):
                    side[name]  # an unknown or absent signal says why
                    raise SignalError(f"the viewer shows attention.<stream>; got {name!r}")
        if asked:
            return list(asked)
    shared = [
        str(name)
        for name in student
        if name.startswith("attention.") and all(name in side for side in sides)
    ]
    crossing = [name for name in shared if "_to_" in name]
    if asked == ALL and shared:
        within = _within(crossing, sides)
        # a joint stream is shown part by part
        others = [x for x in shared if x not in crossing and not (within and x.endswith(".joint"))]
        return [*crossing, *within, *others]
    if crossing or shared:
        return crossing or shared
    raise SignalError(
        "there is no attention that both sides have: the student has "
        f"{', '.join(student) or 'no signal'}; the teacher "
        + ("is not given" if teacher is None else f"has {', '.join(teacher) or 'no signal'}")
    )


def _within(crossing: Sequence[str], sides: Sequence[Signals]) -> list[str]:
    """Attention within one modality that is made of a joint stream's, and not listed."""
    ends = [end for x in crossing for end in x.removeprefix("attention.").split("_to_")]
    names = [f"attention.{one}_to_{one}" for one in dict.fromkeys(ends)]
    return [x for x in names if x not in crossing and all(x in side for side in sides)]
