"""Weights by which the terms' gradients do not work against each other, as TorchJD finds them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import OptionError, RecipeError, unknown_name
from .protocol import Reads, State, StepStatistics


class JacobianDescent:
    """Factors of an aggregator of TorchJD (Quinton and Rey, 2024) for the terms' gradients.

    The Jacobian has one row for each term, the gradient of prior x value. The aggregator's
    weighting makes one weight of each row from the Gramian of the rows, and the loss is the sum of
    prior x factor x value with factors that are constants. Its gradient is the aggregation, times
    one number: the weights are divided by those that k orthogonal rows of norm 1 have, so that a
    term that neither agrees nor conflicts with the others keeps its own weight (UPGrad's weights
    are those of a mean; a loss here is a sum).

    The factors are those of the step before, unless the recipe says ``now = true``.

    Args:
        terms: the names of the objective's terms.
        aggregator: the name of a class of ``torchjd.aggregation`` that works on a Gramian and
            remembers nothing from step to step.
        options: its keyword arguments.

    Raises:
        RecipeError: TorchJD is not installed; no such aggregator, or not of this kind.
        OptionError: options that the aggregator does not take.
    """

    reads: ClassVar[Reads] = "gradients"

    def __init__(
        self,
        terms: Sequence[str],
        *,
        aggregator: str = "UPGrad",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        del terms
        self._weighting = _weighting_of(aggregator, options or {})

    def start(self) -> State:
        return {}

    def settle(self, step: StepStatistics, state: State) -> tuple[Tensor, State]:
        priors = step.priors
        gramian = priors[:, None] * step.gramian * priors
        if not gramian.any():
            return step.factors, state
        unit = _weights(self._weighting, torch.eye(len(gramian), dtype=gramian.dtype)).mean()
        return _weights(self._weighting, gramian) / unit, state


def _weights(weighting: Any, gramian: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = copy.deepcopy(weighting)(gramian)
    return found


def _weighting_of(name: str, options: Mapping[str, Any]) -> Any:
    """The weighting on the Gramian of an aggregator of that name."""
    try:
        from torchjd import aggregation
        from torchjd.aggregation import GramianWeightedAggregator
    except ModuleNotFoundError as error:
        if error.name != "torchjd":
            raise
        raise RecipeError(
            'the weighting "torchjd" needs TorchJD, which is not installed: '
            "pip install 'distillkit[torchjd]'"
        ) from None
    known = {
        one: found
        for one in aggregation.__all__
        if isinstance(found := getattr(aggregation, one), type)
        and issubclass(found, GramianWeightedAggregator)
        and found is not GramianWeightedAggregator
        and not hasattr(found, "reset")  # what it remembers would be in no checkpoint
    }
    if name not in known:
        unknown = unknown_name("aggregator of TorchJD on a Gramian, without a state,", name, known)
        raise RecipeError(str(unknown))
    try:
        return known[name](**options).gramian_weighting
    except (TypeError, ValueError) as error:
        raise OptionError(f"aggregator {name!r} of TorchJD with {dict(options)}: {error}") from None
    except ImportError as error:
        raise RecipeError(f"aggregator {name!r} of TorchJD: {error}") from None
