"""Weights as pure functions of the progress through training."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from .._tables import Table
from ..errors import OptionError


class Schedule(Table):
    """A weight that goes from ``start`` to ``stop`` while the progress goes from 0 to ``until``.

    Attributes:
        start: the weight at progress 0.
        stop: the weight from progress ``until`` on.
        until: where the change ends, in (0, 1].
        shape: ``"step"`` keeps ``start`` until then; ``"linear"`` and ``"cosine"`` interpolate.

    Examples:
        >>> Schedule(start=8.0, stop=0.0, until=0.5, shape="linear").at(0.25)
        4.0
        >>> Schedule(start=8.0, stop=0.0, until=0.5, shape="step").at(0.5)
        0.0
    """

    what = "a weight schedule"

    start: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    stop: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    until: Annotated[float, Field(gt=0, le=1)] = 1.0
    shape: Literal["step", "linear", "cosine"] = "linear"

    def at(self, progress: float) -> float:
        """The weight at a progress in [0, 1].

        Raises:
            OptionError: a progress outside [0, 1]: it is steps done / steps in all.
        """
        if not 0 <= progress <= 1:
            raise OptionError(
                f"progress is the part of training that is done, in [0, 1]; got {progress}"
            )
        if progress >= self.until:
            return self.stop
        done = progress / self.until
        if self.shape == "step":
            return self.start
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.stop - self.start) * done
