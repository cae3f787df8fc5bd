"""Run checks that are functions of a case: one by one as tests, or all of them into results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import DistillKitError, unknown_name
from .results import CheckResult
from .verdicts import NotApplicable, UnmetError, Unverified

Checks = Mapping[str, Callable[[Any], str]]


def results_of(case: Any, checks: Checks) -> list[CheckResult]:
    """One result for each check; what a check raises is what it saw."""
    results = []
    for name, check in checks.items():
        passed = unverified = False
        try:
            seen, passed = asserted(check, case), True
        except Unverified as reason:
            seen, unverified = str(reason), True
        except (UnmetError, DistillKitError) as wrong:
            seen = str(wrong)
        except Exception as raised:
            seen = f"{type(raised).__name__}: {raised}"
        results.append(CheckResult(name, passed=passed, seen=seen, unverified=unverified))
    return results


def asserted(check: Callable[[Any], str], case: Any) -> str:
    """Run one check as a test; a check with nothing to look at passes."""
    try:
        return check(case)
    except NotApplicable as nothing:
        return f"not applicable: {nothing}"


def tested(check: Callable[[Any], str], case: Any) -> str:
    """Run one check inside pytest, where what cannot be verified is skipped with its reason."""
    import pytest

    try:
        return asserted(check, case)
    except Unverified as reason:
        pytest.skip(f"unverified: {reason}")


def expected_marks(
    cases: Iterable[str], checks: Iterable[str], expected: Mapping[str, str]
) -> dict[tuple[str, str], Any]:
    """(case, check) -> the mark of a failure that is expected.

    Args:
        cases: names of the cases.
        checks: names of the checks.
        expected: check, or ``"<case>-<check>"``, -> why it is known to fail.

    Raises:
        UnknownNameError: an expected failure of no case and check.
    """
    import pytest

    checks, used, found = list(checks), set(), {}
    for case in cases:
        for check in checks:
            for name in (f"{case}-{check}", check):
                if name in expected:
                    used.add(name)
                    found[case, check] = pytest.mark.xfail(reason=expected[name], strict=True)
                    break
    for name in expected:
        if name not in used:
            raise unknown_name("check of these cases", name, checks)
    return found
