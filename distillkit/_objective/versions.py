"""How often parameters were written into: an optimizer's step writes into all that it has."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def written(parameters: Iterable[Tensor]) -> int:
    """The in-place writes into some parameters, until now."""
    return sum(p._version for p in parameters if not p.is_inference())  # noqa: SLF001
