"""What every pytest run of an environment loads: two lines of configuration, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many inputs a check of the kit draws."""
    parser.getgroup("distillkit").addoption(
        "--distillkit-examples",
        type=_at_least_one,
        metavar="N",
        help="inputs that each check of distillkit's conformance kit draws; slow ones draw fewer",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; set the number of examples where one was given."""
    config.addinivalue_line(
        "markers", "distillkit_check: one loss, adapter or plugin in one check of distillkit's kit"
    )
    count = config.getoption("--distillkit-examples")
    if count is not None:
        from .budget import set_examples

        set_examples(count)


def _at_least_one(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(f"a check draws at least one example; got {text}")
    return count
