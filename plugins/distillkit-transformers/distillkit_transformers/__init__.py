"""Adapters of distillkit for vision-language models of transformers.

Nothing heavy is imported before it is used: distillkit lists this plugin's adapters by name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .collate import Collator as Collator
    from .trainer import DistillationMixin as DistillationMixin
    from .trainer import DistillationTrainer as DistillationTrainer
    from .vilt_config import ViltDualEncoderConfig as ViltDualEncoderConfig
    from .vilt_dual_encoder import ViltDualEncoder as ViltDualEncoder

_HOMES = {
    "Collator": "collate",
    "DistillationMixin": "trainer",
    "DistillationTrainer": "trainer",
    "ViltDualEncoder": "vilt_dual_encoder",
    "ViltDualEncoderConfig": "vilt_config",
}
__all__ = sorted(_HOMES)

__version__: str  # read from the distribution's metadata when it is asked for


if not TYPE_CHECKING:  # a checker would take any name for one of these

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        if name == "__version__":
            return _installed_version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("distillkit-transformers")
    except PackageNotFoundError:  # a checkout on the path; below every release
        return "0+unknown"
