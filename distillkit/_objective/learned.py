"""Options of a loss that are trained: temperatures, the scale of contrastive logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._attention import widen
from .._tables import Table, validated
from ..errors import OptionError, RecipeError
from .options import checked_options

_EXTREMES = 1e-30, 1e30


class Learn(Table):
    """How one option is trained.

    Attributes:
        start: its value at first, above 0.
        low: it stays above this number; given together with ``high``.
        high: it stays below this number.
        reverse: the gradient is turned round, so that the option makes the loss larger while the
            student makes it smaller.
    """

    what = "a learned option"

    start: float
    low: float | None = None
    high: float | None = None
    reverse: bool = False


class LearnedOption(nn.Module):
    r"""A trained positive number.

    .. math:: \exp(w), \quad\text{or}\quad
              \exp(\log l + (\log h - \log l)\, \sigma(w)) \text{ in a range } (l, h)

    Its parameter ``raw`` is w, of shape ``(1,)``.

    Args:
        learn: where it starts, and in which range it stays.

    Examples:
        >>> LearnedOption(Learn(start=2.0))().round(decimals=4)
        tensor(2., grad_fn=<RoundBackward1>)

    Source: the logarithm: Radford et al., *CLIP*, 2021, https://arxiv.org/abs/2103.00020, section
    2.3; the reversed gradient: Li et al., *CTKD*, 2023, https://arxiv.org/abs/2211.16231.
    """

    def __init__(self, learn: Learn) -> None:
        super().__init__()
        self.reverse = learn.reverse
        self._range: tuple[float, float] | None = None
        raw = math.log(learn.start)
        if learn.low is not None and learn.high is not None:
            low, high = math.log(learn.low), math.log(learn.high)
            self._range = low, high
            share = (raw - low) / (high - low)
            raw = math.log(share / (1 - share))
        self.raw = nn.Parameter(torch.tensor([raw]))

    def forward(self) -> Tensor:
        """The number, without axes, in float32 at least."""
        raw = widen(self.raw).reshape(())
        if self._range is not None:
            low, high = self._range
            raw = low + (high - low) * raw.sigmoid()
        value = raw.exp()
        return 2 * value.detach() - value if self.reverse else value


def learned_options(
    term: str,
    function: Callable[..., Tensor] | None,
    learn: Mapping[str, Any],
    options: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> nn.ModuleDict:
    """Option -> what is trained of it.

    Raises:
        RecipeError: an option that is given, too; keys that mean nothing.
        OptionError: a value that the option does not take, no number, or an option of which not
            every positive number is allowed without a range.
    """
    found = nn.ModuleDict()
    for name, given in learn.items():
        where = f"term {term!r}: learn.{name}"
        if name in options:
            raise RecipeError(f"{where} starts at a value of its own: leave it out of `options`")
        table = given if isinstance(given, Mapping) else {"start": given}
        one = validated(Learn, table, where, RecipeError)
        _check_range(where, one)
        ends = _EXTREMES if one.low is None or one.high is None else (one.low, one.high)
        _check_value(term, function, {**options, name: one.start}, name, inputs)
        try:
            for end in ends:
                _check_value(term, function, {**options, name: end}, name, inputs)
        except OptionError as error:
            raise OptionError(
                f"{where} may become a number that the loss refuses: give it a range, "
                f"{{ start = {one.start}, low = ..., high = ... }} ({error})"
            ) from None
        found[name] = LearnedOption(one)
    return found


def check_reached(term: str, values: Tensor, learned: nn.ModuleDict) -> None:
    """Refuse a loss that a learned option does not reach by its gradient.

    Raises:
        OptionError: the option that would stay as it is.
    """
    reached = _leaves_below(values)
    for name, one in learned.items():
        if any(id(parameter) not in reached for parameter in trained([one])):
            raise OptionError(
                f"term {term!r}: no gradient reaches the option {name!r}, so it cannot be learned: "
                "the loss takes it as a plain number; give it a value in `options`"
            )


def _leaves_below(values: Tensor) -> set[int]:
    """The ids of the leaf tensors that values have a gradient to."""
    seen: set[Any] = set()
    found: set[int] = set()
    waiting = [values.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        waiting += [one for one, _ in node.next_functions]
    return found


def _check_range(where: str, learn: Learn) -> None:
    if (learn.low is None) != (learn.high is None):
        raise OptionError(f"{where} takes both low and high, or neither; got {learn!r}")
    low, high = learn.low or 0.0, math.inf if learn.high is None else learn.high
    if learn.low is not None and not 0 < low < high < math.inf:
        raise OptionError(f"{where}: a range is 0 < low < high; got {low} and {high}")
    if not low < learn.start < high:
        raise OptionError(
            f"{where} starts above 0 and inside its range, not at its ends; got {learn.start}"
        )


def _check_value(
    term: str,
    function: Callable[..., Tensor] | None,
    options: Mapping[str, Any],
    name: str,
    inputs: Mapping[str, str],
) -> None:
    value = checked_options(term, function, options, inputs)[name]
    if not isinstance(value, float):
        raise OptionError(
            f"term {term!r}: learn.{name}: only an option that is any number can be learned; this "
            f"one takes {value!r}"
        )


def current(learned: nn.ModuleDict) -> dict[str, Any]:
    """Option -> its value in this step, with gradient."""
    return {name: one() for name, one in learned.items()}


def trained(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of some modules that learn."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]
