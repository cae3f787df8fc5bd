"""How many examples a check draws; a module of its own, so that setting it loads nothing."""

from __future__ import annotations

DEFAULT = 20
"""What the whole library's losses pass in a minute; a nightly run takes 500."""

_chosen = [DEFAULT]


def examples() -> int:
    """The number of examples in force."""
    return _chosen[0]


def set_examples(count: int) -> None:
    """Draw so many from now on, as ``pytest --distillkit-examples=N`` does."""
    _chosen[0] = count
