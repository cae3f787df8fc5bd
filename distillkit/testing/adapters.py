"""Check that an adapter says the truth about its model."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from .adapter_case import AdapterCase as AdapterCase
from .adapter_case import Factory
from .adapter_checks import CHECKS
from .results import CheckResult
from .running import expected_marks, results_of, tested


def check_adapter(factory: Factory) -> list[CheckResult]:
    """Run every check of an adapter.

    Args:
        factory: see :class:`AdapterCase`.

    Returns:
        One result for each check; ``seen`` says what was found, what was wrong, or why nothing can
        be proved (``unverified``: neither passed nor failed).

    Examples:
        >>> import torch, distillkit as dk
        >>> layer = torch.nn.Module()
        >>> layer.forward = lambda x: (x @ x.mT).softmax(-1) @ x
        >>> class Tower(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.image = layer
        ...
        ...     def forward(self, pixels):
        ...         return self.image(pixels[:, None])
        >>> tokens = {"image": [{"modality": "image", "grid": [2, 3]}]}
        >>> adapter = dk.DeclarativeAdapter(streams={"image": "image"}, tokens=tokens)
        >>> results = check_adapter(lambda: (Tower(), {"pixels": torch.randn(2, 6, 4)}, adapter))
        >>> [str(result) for result in results if result.failed]
        []
    """
    return results_of(AdapterCase(factory), CHECKS)


def parametrize_with_adapter_checks(
    factories: Iterable[Factory], *, expected_failures: Mapping[str, str] | None = None
) -> Any:
    """A decorator: the test runs once for each factory and check, ``def test(case, check)``.

    Nothing is built when tests are collected. Inside the test: ``check(case)``. What cannot be
    verified is skipped, with the reason.

    Args:
        factories: see :class:`AdapterCase`; their names appear in the tests' names.
        expected_failures: check, or ``"<factory>-<check>"``, -> why it is known to fail. One that
            passes after all fails the test: strict.

    Raises:
        UnknownNameError: an expected failure of no factory and check.
    """
    import pytest

    cases = [AdapterCase(factory) for factory in factories]
    names = [case.name for case in cases]
    marks = expected_marks(names, CHECKS, expected_failures or {})
    return pytest.mark.parametrize(
        ("case", "check"),
        [
            pytest.param(
                case,
                functools.partial(tested, check),
                id=f"{case.name}-{name}",
                marks=[marks[case.name, name]] if (case.name, name) in marks else [],
            )
            for case in cases
            for name, check in CHECKS.items()
        ],
    )
