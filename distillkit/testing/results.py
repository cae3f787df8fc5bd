"""What a check saw."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check of one loss, adapter, operation or plugin.

    Attributes:
        name: the check.
        passed: whether what it asks for was seen.
        seen: one line: what was found, or what was wrong.
        failing: the smallest input that fails, where one was found.

    Examples:
        >>> print(CheckResult("nonnegative", passed=False, seen="value -0.5", failing="zeros"))
        failed  nonnegative: value -0.5; smallest failing input: zeros
    """

    name: str
    passed: bool
    seen: str = ""
    failing: str = ""

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "failed"
        input_ = f"; smallest failing input: {self.failing}" if self.failing else ""
        return f"{verdict}  {self.name}: {self.seen}{input_}"
