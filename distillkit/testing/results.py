"""What a check saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check of one loss, adapter, operation or plugin.

    Attributes:
        name: the check.
        passed: whether what it asks for was seen.
        seen: one line: what was found, what was wrong, or why nothing can be proved.
        failing: the smallest input that fails, where one was found.
        unverified: nothing that can be seen proves it, and nothing refutes it: not passed, and
            not failed.

    Examples:
        >>> print(CheckResult("nonnegative", passed=False, seen="value -0.5", failing="zeros"))
        failed  nonnegative: value -0.5; smallest failing input: zeros
        >>> CheckResult("a_grid", passed=False, unverified=True).verdict
        'unverified'
    """

    name: str
    passed: bool
    seen: str = ""
    failing: str = ""
    unverified: bool = False

    @property
    def failed(self) -> bool:
        """Whether something else was seen than what the check asks for."""
        return not self.passed and not self.unverified

    @property
    def verdict(self) -> Literal["passed", "failed", "unverified"]:
        """The result in one word."""
        if self.unverified:
            return "unverified"
        return "passed" if self.passed else "failed"

    def __str__(self) -> str:
        input_ = f"; smallest failing input: {self.failing}" if self.failing else ""
        return f"{self.verdict}  {self.name}: {self.seen}{input_}"
