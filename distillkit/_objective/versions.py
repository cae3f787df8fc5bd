"""Whether parameters were stepped: an optimizer writes into all that it has."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Writes(NamedTuple):
    """What is known of the writes into some parameters until now.

    Attributes:
        versions: the in-place writes that torch counts.
        last_step: when an optimizer that has one of them was stepped last; fused kernels write
            without being counted.
    """

    versions: int
    last_step: int

    def follow(self, earlier: Writes) -> bool:
        """Whether something was written since."""
        return self.versions != earlier.versions or self.last_step > earlier.last_step


def writes(parameters: Iterable[Tensor]) -> Writes:
    """The writes into some parameters, until now."""
    listed = list(parameters)
    own = {id(p) for p in listed}
    last = 0
    for optimizer, step in list(_last_steps.items()):
        if step > last and any(id(p) in own for g in optimizer.param_groups for p in g["params"]):
            last = step
    return Writes(sum(p._version for p in listed if not p.is_inference()), last)  # noqa: SLF001


_last_steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
_clock = itertools.count(1)


def _note_step(optimizer: Optimizer, *_: Any) -> None:
    _last_steps[optimizer] = next(_clock)


register_optimizer_step_post_hook(_note_step)  # of the process: nothing is on a model
