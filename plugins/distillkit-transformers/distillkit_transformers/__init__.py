"""Adapters of distillkit for vision-language models of transformers.

Nothing heavy is imported before it is used: distillkit lists this plugin's adapters by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .collate import Collator as Collator

__all__ = ["Collator"]


def __getattr__(name: str) -> object:
    if name == "Collator":
        from .collate import Collator

        return Collator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
