"""What a loss that sits in opaque operators does with its tensors, whichever loss it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def transformed() -> bool:
    """Whether a ``torch.func`` transform is at work, whose tensors cannot be changed in place."""
    return bool(torch._C._are_functorch_transforms_active())  # noqa: SLF001 (torch has no other)


def told_apart(tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The same, none of them twice while a compiler traces: dynamo refuses tied arguments."""
    if not torch.compiler.is_compiling():
        return tensors
    return [None if x is None else x.view_as(x) for x in tensors]


def present(found: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """Empty tensors in place of None: an operator returns tensors only."""
    return tuple(like.new_empty(0) if x is None else x for x in found)
