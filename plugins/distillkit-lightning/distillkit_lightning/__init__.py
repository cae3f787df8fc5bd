"""Lightning for distillkit: a module that trains a student, ready for ``Trainer.fit``.

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .module import DistillationModule as DistillationModule

__all__ = ["DistillationModule"]

__version__: str  # read from the distribution's metadata when it is asked for


if not TYPE_CHECKING:  # a checker would take any name for one of these

    def __getattr__(name: str) -> object:
        if name in __all__:
            return getattr(importlib.import_module(".module", __name__), name)
        if name == "__version__":
            return _installed_version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("distillkit-lightning")
    except PackageNotFoundError:  # a checkout on the path; below every release
        return "0+unknown"
