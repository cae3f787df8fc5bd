"""Put losses through every check that they choose."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from hypothesis import given as hypothesis_given
from hypothesis import settings

from .._plugins.specs import LossSpec
from ..errors import unknown_name
from . import budget, checks, compiling, invariants, precision
from .results import CheckResult
from .strategies import EVERY, GENERIC, Arguments, arguments
from .subject import CheckFailedError, Loss

if TYPE_CHECKING:
    import pytest
    from hypothesis.strategies import SearchStrategy

TAGS = (
    "exactly_zero_at_identity", "functional", "logits", "mass_covering", "mode_seeking",
    "nonnegative", "permutation_invariant", "scale_invariant", "shift_invariant", "smooth",
    "symmetric", "temperature_squared", "zero_at_identity",
)  # fmt: skip
"""Every tag that chooses a check."""


@dataclass(frozen=True)
class Check:
    """One check: what it asks, of which losses, on which inputs.

    Attributes:
        function: the plain function of a loss and one call of it.
        applies: whether a loss chooses it.
        values: kinds of numbers that it draws.
        side: smallest and largest size of an axis.
        leading: shapes of the leading axes.
        options: whether options are drawn: left at their "default", "inside" of their bounds, or
            at the "edges" of them, too.
        share: the part of the examples that it draws; what is slow draws fewer.
    """

    function: Callable[[Loss, Arguments], None]
    applies: Callable[[Loss], bool]
    values: Sequence[str] = ("plain",)
    side: tuple[int, int] = (1, 4)
    leading: Sequence[tuple[int, ...]] = ((), (1,), (2,), (3,), (2, 2))
    share: float = 1.0
    options: Literal["default", "inside", "edges"] = "inside"

    @property
    def name(self) -> str:
        """Its name in results and ``expected_failures``."""
        return self.function.__name__

    @property
    def summary(self) -> str:
        """Its question in one line."""
        return (self.function.__doc__ or "").partition("\n")[0]

    def __call__(self, loss: LossSpec | str, *, examples: int | None = None) -> None:
        """Put a loss through this check.

        Raises:
            AssertionError: what was seen, and the smallest input that shows it.
        """
        result = self.run(Loss.of(loss), examples)
        if not result.passed:
            raise CheckFailedError(str(result))

    def run(self, loss: Loss, examples: int | None = None) -> CheckResult:
        """Run this check on a loss, with so many examples."""
        wanted = budget.examples() if examples is None else examples
        count = max(1, math.ceil(self.share * wanted))
        drawn = self._calls(loss)
        share = math.ceil(count / len(drawn))
        for calls in drawn:
            failed = self._falsified(loss, calls, share)
            if failed is not None:
                return failed
        return CheckResult(self.name, passed=True, seen=f"{share * len(drawn)} examples")

    def _falsified(
        self, loss: Loss, calls: SearchStrategy[Arguments], count: int
    ) -> CheckResult | None:
        """What the smallest failing one of so many calls shows; None: all pass."""
        failing: list[Arguments] = []

        @settings(max_examples=count, deadline=None, database=None, report_multiple_bugs=False)
        @hypothesis_given(calls)
        def falsify(call: Arguments) -> None:
            call = loss.accepted(call)
            try:
                self.function(loss, call)
            except Exception:
                failing.append(call)  # the last one is the smallest
                raise

        try:
            falsify()
        except Exception as error:
            seen = _said(error, loss.spec)
            return CheckResult(self.name, passed=False, seen=seen, failing=_last(failing))
        return None

    def _calls(self, loss: Loss) -> list[SearchStrategy[Arguments]]:
        """Calls at the default options, with other options, and with averaged heads.

        Each has its part of the examples, so that no chance leaves one of them out.
        """
        options = self._options(loss)
        averaged = options.pop("heads", ())
        calls = [self._drawn(loss, {})]
        if options:
            calls.append(self._drawn(loss, options))
        calls += [self._drawn(loss, options).map(partial(_with, heads=one)) for one in averaged]
        return calls

    def _drawn(self, loss: Loss, options: dict[str, tuple[Any, ...]]) -> SearchStrategy[Arguments]:
        drawn: SearchStrategy[Arguments] = arguments(
            loss.spec,
            values=self.values,
            side=self.side,
            least=loss.least,
            leading=self.leading,
            options=options,
        )
        return drawn

    def _options(self, loss: Loss) -> dict[str, tuple[Any, ...]]:
        """The values of each option that this check draws."""
        if self.options == "default":
            return {}
        at_edges = self.options == "edges"
        drawn = {
            name: tuple(dict.fromkeys((*one.inside, *(one.edges if at_edges else ()))))
            for name, one in loss.options.items()
        }
        return {name: values for name, values in drawn.items() if values}


def _with(call: Arguments, **options: Any) -> Arguments:
    return replace(call, options={**call.options, **options})


def _always(_: Loss) -> bool:
    return True


def _tagged(tag: str) -> Callable[[Loss], bool]:
    return lambda loss: tag in loss.spec.tags


def _takes_where(loss: Loss) -> bool:
    # of the last axis of the first argument; where it bans anything else, a loss has its own tests
    return "where" in loss.takes and re.match(r"\(\w+\)", loss.spec.signature) is not None


def _states_bounds(loss: Loss) -> bool:
    return any(option.outside for option in loss.options.values())


_SEVERAL = ((2,), (3,), (2, 2))
_ONE = ((2,), (3,))
_STORED = ("plain", "generic", "extreme", "large")

CHECKS = (
    Check(checks.shape, _always, values=EVERY, options="edges"),
    Check(checks.finite_gradient, _always, values=EVERY, options="edges"),
    Check(checks.edge_sizes, _always, GENERIC, side=(1, 1), leading=((), (1,), (0,), (2, 0))),
    Check(checks.gradcheck, _always, GENERIC, side=(1, 3), leading=((1,), (2,)), share=0.25),
    Check(checks.gradient_reaches_student, _always, GENERIC, side=(3, 4), leading=_ONE, share=0.5),
    Check(checks.nan_reaches_value, _always, side=(2, 4), leading=_ONE, share=0.25),
    Check(checks.positions_independent, _always, leading=_SEVERAL),
    Check(checks.split_invariance, _always, leading=_SEVERAL, share=0.5),
    Check(checks.padding, _always, side=(2, 4), leading=_ONE, share=0.5),
    Check(checks.permutation, _always, side=(2, 4), leading=_SEVERAL, share=0.5),
    Check(precision.low_precision, _always, values=_STORED, share=0.5),
    Check(checks.same_twice, _always, values=EVERY, share=0.5),
    Check(checks.inputs_unchanged, _always, share=0.5),
    # of one number no layout but the contiguous one can be made
    Check(checks.memory_layout, _always, side=(2, 4), leading=((3,), (2, 2)), share=0.5),
    Check(checks.device, _always, share=0.25),
    Check(checks.bad_shapes, _always, side=(2, 3), leading=((2,), (3,)), share=0.25),
    Check(compiling.compiles, _always, GENERIC, (3, 3), ((2,),), share=0.0, options="default"),
    Check(invariants.nonnegative, _tagged("nonnegative"), values=EVERY),
    # generic: what nothing correlates with, a constant, may have a value of its own
    Check(invariants.zero_at_identity, _tagged("zero_at_identity"), GENERIC, side=(2, 4)),
    Check(
        invariants.exactly_zero_at_identity, _tagged("exactly_zero_at_identity"), values=EVERY
    ),
    Check(
        invariants.bounded, lambda loss: loss.spec.bound is not None, EVERY, options="default"
    ),
    Check(invariants.symmetric, _tagged("symmetric"), values=EVERY, options="default"),
    Check(invariants.shift_invariant, _tagged("shift_invariant")),
    Check(invariants.scale_invariant, _tagged("scale_invariant")),
    Check(invariants.permutation_invariant, _tagged("permutation_invariant"), side=(2, 4)),
    Check(invariants.smooth, _tagged("smooth"), GENERIC, (1, 3), ((1,), (2,)), share=0.25),
    Check(invariants.temperature_squared, _tagged("temperature_squared"), share=0.5),
    Check(invariants.mass_covering, _tagged("mass_covering"), side=(2, 4), share=0.5),
    Check(invariants.mode_seeking, _tagged("mode_seeking"), side=(2, 4), share=0.5),
    Check(invariants.minus_infinity, _tagged("logits"), side=(2, 4), share=0.5),
    Check(invariants.where, _takes_where, share=0.5),
    Check(invariants.functional, _tagged("functional"), GENERIC, (2, 3), ((2,),), share=0.1),
    Check(invariants.option_bounds, _states_bounds, share=0.1, options="default"),
)  # fmt: skip
"""Every check, cheap ones first."""


def checks_for(spec: LossSpec | str) -> list[Check]:
    """The checks that a loss chooses, by its tags, its bound and its arguments.

    Raises:
        UnknownNameError: a tag that chooses nothing; the nearest are suggested.
    """
    loss = Loss.of(spec)
    for tag in loss.spec.tags:
        if tag not in TAGS:
            raise unknown_name("tag", tag, TAGS)
    return [check for check in CHECKS if check.applies(loss)]


def check_loss(spec: LossSpec | str, *, examples: int | None = None) -> list[CheckResult]:
    """Put a loss through every check that it chooses; needs no pytest.

    Args:
        spec: a loss's spec, or the name of a registered one.
        examples: how many inputs each check draws; slow checks draw a part of it.

    Returns:
        One result for each check: what was seen, and the smallest input that fails.

    Raises:
        UnknownNameError: no such loss; a tag that no check knows.

    Examples:
        >>> results = check_loss("mse", examples=2)
        >>> all(result.passed for result in results)
        True
    """
    return [check.run(Loss.of(spec), examples) for check in checks_for(spec)]


def parametrize_with_loss_checks(
    specs: Sequence[LossSpec | str], *, expected_failures: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """Parametrise a test ``(loss, check)`` over losses and the checks that each chooses.

    Args:
        specs: specs, or names of registered losses.
        expected_failures: check, or ``"<loss>-<check>"``, -> why it is known to fail. One that
            passes after all fails the test: strict.

    Raises:
        UnknownNameError: an expected failure that no loss is put through.

    Examples:
        >>> @parametrize_with_loss_checks(["mse"])
        ... def test_loss(loss, check):
        ...     check(loss)
    """
    import pytest

    expected, used, cases = dict(expected_failures or {}), set(), []
    for spec in specs:
        found = Loss.of(spec).spec
        for check in checks_for(found):
            case = f"{found.name}-{check.name}"
            known = [name for name in (case, check.name) if name in expected]
            used.update(known)
            marks = [pytest.mark.distillkit_check]
            if known:
                marks.append(pytest.mark.xfail(reason=expected[known[0]], strict=True))
            cases.append(pytest.param(found, check, id=case, marks=marks))
    for name in expected:
        if name not in used:
            raise unknown_name("check of these losses", name, [check.name for check in CHECKS])
    return pytest.mark.parametrize(("loss", "check"), cases)


def _said(error: Exception, spec: LossSpec) -> str:
    if isinstance(error, CheckFailedError):
        return str(error)
    if isinstance(error, ExceptionGroup):  # a failure that did not come again
        return f"{_said(error.exceptions[0], spec)} (and not the next time)"
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0] if lines else ''}"
    if "missing" in said and isinstance(error, TypeError) and spec.example is None:
        return f"{said} (LossSpec(example=...) says what the signature cannot)"
    return said


def _last(failing: list[Arguments]) -> str:
    return repr(failing[-1]) if failing else ""
