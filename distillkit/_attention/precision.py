"""The precision that losses compute in, whatever the models and autocast do."""

from __future__ import annotations

import torch
from torch import Tensor

from .._transfer import trackable


def widen(x: Tensor) -> Tensor:
    """At least float32, half precision is for storage; and nothing that autograd cannot save."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else trackable(x)


def inner_products(one: Tensor, other: Tensor) -> Tensor:
    """``(n, d), (m, d) -> (n, m)`` in the tensors' own dtype, whatever autocast says."""
    if not _has_autocast(one.device.type):
        return one @ other.mT
    with torch.autocast(one.device.type, enabled=False):
        return one @ other.mT


def _has_autocast(device: str) -> bool:
    """Whether a type of device has autocast to turn off; meta has none.

    Before torch 2.13 a compiler cannot ask torch.
    """
    if torch.compiler.is_compiling():
        return device != "meta"
    return torch.amp.is_autocast_available(device)
