"""``python -m distillkit view``: the page of saved signals, or of what a function returns."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._attention.attention import Attention
from .._attention.keep import Keep
from .._attention.source import Products, Replay, Scores, Weights
from .._backbone.axis import TokenAxis
from .._backbone.layers import Layers, Refusal
from .._backbone.signals import Signals
from .._capture.wrappers import layers_of
from .._objective.distiller import Distiller
from .._plugins.specs import resolve
from ..errors import SignalError
from .view import View, view

_ARGUMENTS = ("student", "teacher", "words", "images", "denormalise", "signals", "layers")
_SAFE: list[Any] = [
    Attention, Keep, Layers, Products, Refusal, Replay, Scores, Signals, TokenAxis, Weights, slice,
]  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Write the page; 0, as what is wrong is raised."""
    if ":" in arguments.source and not Path(arguments.source).is_file():
        made = _of_function(arguments.source)
    else:
        made = _of_file(Path(arguments.source))
    path = made.save(arguments.output)
    sys.stderr.write(f"{path}: {path.stat().st_size / 1e6:.2f} MB, exact to {made.tolerance:.2g}\n")
    return 0


def _of_function(target: str) -> View:
    """The page of ``(distiller, batch)``, with words and images behind it."""
    sys.path.insert(0, str(Path.cwd()))  # as python itself does for a script
    try:
        made: Any = resolve(target)()
    except ImportError as error:
        raise SignalError(f"{target!r}: {error}") from None
    fits = isinstance(made, tuple) and 2 <= len(made) <= 4
    if not fits or not _is_distiller(made[0]) or not isinstance(made[1], Mapping):
        raise SignalError(
            f"{target!r} returns (distiller, batch), (distiller, batch, words) or (distiller, "
            f"batch, words, images), as distillkit.view takes them; got {_kinds(made)}"
        )
    distiller, batch, words, images = (*made, None, None)[:4]
    return view(distiller, batch=batch, words=words, images=images)


def _is_distiller(made: Any) -> bool:
    """Whether it is a distiller, wrapped or not."""
    return isinstance(made, nn.Module) and any(isinstance(x, Distiller) for x in layers_of(made))


def _of_file(path: Path) -> View:
    """The page of a file that ``torch.save`` wrote: signals, or a dictionary of arguments."""
    if not path.is_file():
        raise SignalError(
            f"{str(path)!r} is no file; view takes one that torch.save wrote, or "
            '"package.module:function"'
        )
    try:
        with torch.serialization.safe_globals(_SAFE):
            made: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise SignalError(
            f"{str(path)!r} is not read: it holds more than signals, tensors, texts and numbers, "
            "which loading could execute, or is damaged. Save "
            '{"student": signals, "teacher": signals, "words": ..., "images": ...}, images as '
            f"tensors ({str(error).splitlines()[0]})"
        ) from None
    if isinstance(made, Signals):
        made = {"student": made}
    if not isinstance(made, dict) or "student" not in made:
        raise SignalError(
            f"{str(path)!r} holds Signals, or a dictionary with them as 'student' and, as "
            f"distillkit.view takes them, {', '.join(_ARGUMENTS[1:])}; got {_kinds(made)}"
        )
    for name in made:
        if name not in _ARGUMENTS:
            raise SignalError(
                f"{str(path)!r}: the viewer takes no {name!r}; it takes {', '.join(_ARGUMENTS)}"
            )
    others = {name: made[name] for name in _ARGUMENTS[2:] if name in made}
    return view(made["student"], made.get("teacher"), **others)


def _kinds(made: Any) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(one).__name__ for one in made)})"
    if isinstance(made, dict):
        return f"a dictionary with {', '.join(map(repr, made)) or 'nothing'}"
    return type(made).__name__
