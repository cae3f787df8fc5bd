"""Which comparisons the kernels can compute, and where. This imports no triton."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from ..comparison import Side, Sides
from .geometry import WIDEST

# read once: a compiler that traces a loss would stop at either
IS_INSTALLED = find_spec("triton") is not None
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def why_not(tensors: list[Tensor]) -> str:
    """Why no kernel computes with these tensors; empty if one can."""
    if not IS_INSTALLED:
        return "triton is not installed (pip install triton)"
    for x in tensors:
        # tensors without numbers are asked for their shapes alone
        if x.device.type not in ("cuda", "meta") and not IS_INTERPRETED:
            return (
                f"the kernels run on a GPU and these tensors are on {x.device} (with "
                "TRITON_INTERPRET=1 in the environment they are interpreted, for tests)"
            )
        if x.dtype == torch.float64:
            return "the kernels sum in float32 and a tensor here is float64"
    return ""


def why_not_attention(sides: Sides[Side], *, mean: bool) -> str:
    """Why no kernel compares two attentions; empty if one can."""
    if mean:
        return 'heads="mean" averages over heads, and the kernels compare head with head'
    for side in sides:
        width = side.query.shape[-1]
        if not 0 < width <= WIDEST:
            return f"the kernels take heads of width 1 to {WIDEST} and one is {width} wide"
    tensors = [x for side in sides for x in (*side.leaves, side.mask) if x is not None]
    return why_not(tensors)
