"""Means of a training's parts over steps and ranks, for the logs of any loop."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import OptionError
from .distiller import Distilled
from .surroundings import device_of_collectives

_LOSS = "loss"


class Meter:
    """Means over steps, and over ranks, of the loss, the parts and the weights.

    Nothing is read from an accelerator before :meth:`means`, so that adding never waits.

    Examples:
        >>> meter = Meter()
        >>> for value in (1.0, 3.0):
        ...     meter.add({"kl_divergence/logits": torch.tensor(value)})
        >>> meter.means()
        {'kl_divergence/logits': 2.0}
        >>> meter.means()
        {}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, float] = {}

    def add(
        self,
        result: Distilled | Mapping[str, Tensor | float],
        *,
        parts: int = 1,
        summed: bool = False,
        weight: float = 1.0,
    ) -> None:
        """Take note of one call.

        Args:
            result: of a distiller: its loss, ``parts`` and ``weights`` (as ``weight/<term>``); or
                any values by name.
            parts: how many calls make one step: the number of accumulated batches.
            summed: the values of a step's calls add up to the step's, as those with
                ``normalizer=`` do; otherwise the step's are their mean.
            weight: how much the call weighs in the means: its number of examples, where the means
                are to be over examples.

        Raises:
            OptionError: no part at all.
        """
        if parts < 1:
            raise OptionError(f"a step is made of 1 or more parts; got parts={parts}")
        values = _values(result) if isinstance(result, Distilled) else result
        for name, value in values.items():
            share = weight / parts
            adds_up = summed and not name.startswith("weight/")
            amount = torch.as_tensor(value).detach().float() * (weight if adds_up else share)
            known = self._sums.get(name)
            self._sums[name] = amount if known is None else known + amount.to(known.device)
            self._steps[name] = self._steps.get(name, 0.0) + share

    def means(self) -> dict[str, float]:
        """The mean of every value over the steps since the last call, and over all ranks.

        Where several processes work together, all of them call this. A term that was not computed
        in a step (its weight was 0) is averaged over the steps in which it was.
        """
        names, rows = self._joined()
        self._sums, self._steps = {}, {}
        return {n: total / steps for n, (total, steps) in zip(names, rows, strict=True) if steps}

    def _joined(self) -> tuple[list[str], list[list[float]]]:
        """Names, and sums and numbers of steps, over all ranks."""
        if not (dist.is_available() and dist.is_initialized()):
            names = list(self._sums)
            return names, [[float(self._sums[name]), self._steps[name]] for name in names]
        everybodys: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everybodys, list(self._sums))
        names = list(dict.fromkeys(name for one in everybodys for name in one))
        rows = torch.zeros(len(names), 2, dtype=torch.float64, device=device_of_collectives())
        for i, name in enumerate(names):
            if name in self._sums:
                rows[i, 0], rows[i, 1] = self._sums[name].to(rows.device), self._steps[name]
        dist.all_reduce(rows)
        listed: list[list[float]] = rows.tolist()
        return names, listed


def _values(result: Distilled) -> dict[str, Tensor | float]:
    weights = {f"weight/{name}": weight for name, weight in result.weights.items()}
    return {_LOSS: result.loss, **result.parts, **weights}
