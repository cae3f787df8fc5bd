"""One call of a kernel, as data: it is run on a GPU, or compiled and looked at without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .geometry import Geometry


class Launch(NamedTuple):
    """A kernel and everything that it is called with.

    Attributes:
        kernel: the function under ``triton.jit``.
        programs: how many of them run, along one axis: others end at 65535.
        arguments: by the kernel's names; what it is compiled for is among them.
        geometry: its tile.
    """

    kernel: Any
    programs: int
    arguments: Mapping[str, Any]
    geometry: Geometry

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told.

        Without contraction, a product that one side has and the other side has too is rounded
        alike on both, and equal sides have equal scores.
        """
        return {
            "num_warps": self.geometry.warps,
            "num_stages": self.geometry.stages,
            "enable_fp_fusion": False,
        }

    def run(self, on: Tensor) -> None:
        """Start the programs on the device of a tensor."""
        if self.programs:
            with torch.cuda.device_of(on):  # type: ignore[no-untyped-call]
                self.kernel[(self.programs,)](**self.arguments, **self.options)
