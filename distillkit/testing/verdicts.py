"""What a check raises instead of a line about what it saw."""

from __future__ import annotations


class UnmetError(AssertionError):
    """A check did not see what it asks for."""


class NotApplicable(Exception):  # noqa: N818 (no error: the model has nothing to check)
    """The model has nothing that a check could look at."""


class Unverified(Exception):  # noqa: N818 (no error: nothing that was seen is wrong)
    """There is something to look at, and nothing that can be seen proves or refutes it."""
