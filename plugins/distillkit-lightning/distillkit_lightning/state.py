"""A module's checkpoint under the keys of its distiller: ``student.x``, ``objective.y``."""

from __future__ import annotations

from typing import Any

from torch import nn

_OWN = "distiller."


def drop_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    """Save under the distiller's own keys, so that it loads them as its own."""
    for name in [name for name in state if name.startswith(prefix + _OWN)]:
        state[prefix + name.removeprefix(prefix + _OWN)] = state.pop(name)


def add_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Load a distiller's own keys, or those of a module that saved them with its attribute."""
    for name in [name for name in state if name.startswith(prefix)]:
        own = name.removeprefix(prefix)
        if not own.startswith(_OWN):
            state[f"{prefix}{_OWN}{own}"] = state.pop(name)
