"""Check that an aligner keeps what terms, copies, checkpoints and devices rely on."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from .._plugins.specs import AlignerSpec
from .aligner_case import AlignerCase as AlignerCase
from .aligner_case import Example
from .aligner_checks import CHECKS
from .results import CheckResult
from .running import asserted, results_of


def check_aligner(
    aligner: AlignerSpec | str,
    example: Example,
    *,
    options: Mapping[str, Any] | None = None,
) -> list[CheckResult]:
    """Run every check of an aligner.

    Args:
        aligner: as of :class:`AlignerCase`.
        example: as of :class:`AlignerCase`.
        options: as of :class:`AlignerCase`.

    Returns:
        One result for each check; ``seen`` says what was found, or what was wrong.

    Examples:
        >>> import torch
        >>> widths = {"student_width": 3, "teacher_width": 4}
        >>> example = lambda: (torch.randn(2, 5, 3), torch.randn(2, 5, 4))
        >>> results = check_aligner("projector", example, options=widths)
        >>> [str(result) for result in results if not result.passed]
        []
        >>> print(results[1])
        passed  sides_fit: both are (2, 5, 4)
    """
    return results_of(AlignerCase(aligner, example, options=options), CHECKS)


def parametrize_with_aligner_checks(cases: Iterable[AlignerCase]) -> Any:
    """A decorator: the test runs once for each case and check, ``def test(case, check)``.

    Nothing is built when tests are collected. Inside the test: ``check(case)``.

    Args:
        cases: the aligners, each with an example.
    """
    import pytest

    return pytest.mark.parametrize(
        ("case", "check"),
        [
            pytest.param(case, functools.partial(asserted, check), id=f"{case.name}-{name}")
            for case in cases
            for name, check in CHECKS.items()
        ],
    )
