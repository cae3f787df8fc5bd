"""``python -m distillkit inspect``: the attentions of a model, and the start of an adapter."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .._plugins.specs import resolve
from ..errors import CaptureError
from .find import AttentionTable, find_attention


def run(arguments: argparse.Namespace) -> int:
    """Print the table of what ``package.module:function`` returns; 1 where nothing was read."""
    sys.path.insert(0, str(Path.cwd()))  # as python itself does for a script
    model, batch = _made(arguments.target)
    table = find_attention(model, **batch)
    lines = [str(table), *(["", _adapter_lines(table)] if table.names else [])]
    sys.stdout.write("\n".join([*lines, ""]))
    return 0 if table.names else 1


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


def _adapter_lines(table: AttentionTable) -> str:
    return (
        "# an adapter file starts with these lines; say of each stream where its tokens sit\n"
        f"{table.streams()}"
    )
