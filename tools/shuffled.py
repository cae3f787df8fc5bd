"""A pytest plugin: tests in a random order, in the locale of the environment.

``python -m pytest -p tools.shuffled`` reads DISTILLKIT_ORDER, the seed of the order. Files are shuffled,
and the tests within each; blocks of a document stay in order, because they are one program.
"""

from __future__ import annotations

import locale
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence


def pytest_configure() -> None:
    """Python itself takes the locale of letters alone from the environment."""
    locale.setlocale(locale.LC_ALL, "")


def pytest_report_header() -> list[str]:
    language = locale.setlocale(locale.LC_ALL)
    return [
        f"locale {language}, encoding {locale.getencoding()}, order {os.environ['DISTILLKIT_ORDER']}"
    ]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = shuffled(items, int(os.environ["DISTILLKIT_ORDER"]))


def shuffled(items: Sequence[pytest.Item], seed: int) -> list[pytest.Item]:
    """The tests in another order, those of one file beside each other."""
    chance = random.Random(seed)
    of_file: dict[Path, list[pytest.Item]] = defaultdict(list)
    for item in items:
        of_file[item.path].append(item)
    files = sorted(of_file)
    chance.shuffle(files)
    found: list[pytest.Item] = []
    for file in files:
        tests = of_file[file]
        if file.suffix != ".md":
            chance.shuffle(tests)
        found += tests
    return found
