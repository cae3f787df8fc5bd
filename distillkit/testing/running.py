"""Run checks that are functions of a case: one by one as tests, or all of them into results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import DistillKitError
from .adapter_checks import UnmetError
from .perturb import NotApplicable
from .results import CheckResult

Checks = Mapping[str, Callable[[Any], str]]


def results_of(case: Any, checks: Checks) -> list[CheckResult]:
    """One result for each check; what a check raises is what it saw."""
    results = []
    for name, check in checks.items():
        try:
            seen, passed = asserted(check, case), True
        except (UnmetError, DistillKitError) as wrong:
            seen, passed = str(wrong), False
        except Exception as raised:
            seen, passed = f"{type(raised).__name__}: {raised}", False
        results.append(CheckResult(name, passed=passed, seen=seen))
    return results


def asserted(check: Callable[[Any], str], case: Any) -> str:
    """Run one check as a test; a check with nothing to look at passes."""
    try:
        return check(case)
    except NotApplicable as nothing:
        return f"not applicable: {nothing}"
