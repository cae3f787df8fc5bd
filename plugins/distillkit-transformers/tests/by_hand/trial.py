"""What a packaged recipe is tried on, and what its loss must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """A pair of tiny models, a batch, and the recipe's loss in plain torch.

    Attributes:
        pair: makes student, teacher and batch.
        by_hand: the loss, from the models' own outputs and modules: no signal, no loss of
            distillkit. It is given the distiller for what a recipe trains beside the student.
        changes: what is overridden for models this small, such as numbers of heads.
        options: further arguments of the distiller.
        rate: the learning rate of the 20 steps.
        flat: terms that need not fall: at their minimum from the start, or with a floor that
            `by_hand` names.
        close: how near the two are in float64; larger where a model computes in float32 inside.
    """

    pair: Callable[[], tuple[nn.Module, nn.Module, Batch]]
    by_hand: Callable[[Any, nn.Module, nn.Module, Batch], Tensor]
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 3e-3
    flat: frozenset[str] = frozenset()
    close: float = 1e-9
