"""``python -m distillkit inspect``: the adapter file of a model, written and checked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .._capture.find import find_attention
from .._plugins.specs import resolve
from ..errors import CaptureError
from .inspection import inspect_model


def run(arguments: argparse.Namespace) -> int:
    """Write the adapter file of what ``package.module:function`` returns.

    The attentions are listed on stderr. 1 where none is read, a line is missing or a check fails.
    """
    sys.path.insert(0, str(Path.cwd()))  # as python itself does for a script
    model, batch = _made(arguments.target)
    table = find_attention(model, **batch)
    sys.stderr.write(f"{table}\n\n")
    if not table.names:
        return 1
    inspection = inspect_model(model, batch)
    text = str(inspection)
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        Path(arguments.output).write_text(text, encoding="utf-8")
        verdict = "complete, and passed" if inspection.passed else "not complete, or wrong"
        sys.stderr.write(f"{arguments.output}: {verdict}; its last lines say what was seen\n")
    return 0 if inspection.passed else 1


def _made(target: str) -> tuple[nn.Module, Mapping[str, Any]]:
    if ":" not in target:
        raise CaptureError(f'inspect takes "package.module:function"; got {target!r}')
    try:
        made: Any = resolve(target)()
    except ImportError as error:
        raise CaptureError(f"{target!r}: {error}") from None
    fits = isinstance(made, tuple) and len(made) == 2
    if not fits or not isinstance(made[0], nn.Module) or not isinstance(made[1], Mapping):
        raise CaptureError(
            f"{target!r} returns (model, batch), a module and a dictionary of its arguments; got "
            f"{type(made).__name__}"
        )
    return made[0], made[1]
