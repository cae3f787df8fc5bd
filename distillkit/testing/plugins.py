"""Does a plugin keep its side of the contract? Asked in an interpreter of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from .._plugins.probe import MARK
from .results import CheckResult


def check_plugin(plugin: str) -> list[CheckResult]:
    """Load a plugin in a fresh interpreter and look at everything that it names.

    The checks, in this order:

    - ``loads``: the module imports, its hooks take no unknown argument and return specs;
    - ``light``: listing it imports neither torch nor anything else that is heavy; where it does,
      the line that does is named;
    - ``names``: nothing else that is installed provides one of its names;
    - ``loss x``, ``adapter x``, ...: what each spec refers to exists and can be called as it will
      be; a recipe is read whole, with the losses and aligners that it names.

    Args:
        plugin: the module of the entry point, ``"acme_distill.plugin"``; it need not be installed,
            only importable from here.

    Returns:
        One result for each check.

    Examples:
        >>> print(check_plugin("acme_distil.plugin")[0])
        failed  loads: ModuleNotFoundError: No module named 'acme_distil'
    """
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
    done = subprocess.run(
        [sys.executable, "-P", "-m", "distillkit._plugins.probe", plugin],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        seen = f"the interpreter ended with code {done.returncode}: {done.stderr.strip()[-500:]}"
        return [CheckResult("loads", passed=False, seen=seen)]
    seen_of = json.loads(lines[-1].removeprefix(MARK))
    return [CheckResult(name, passed=passed, seen=seen) for name, passed, seen in seen_of]


def assert_plugin(plugin: str) -> None:
    """Fail a test unless a plugin passes every check of :func:`check_plugin`.

    Raises:
        AssertionError: every check that failed, and what it saw.

    Examples:
        >>> assert_plugin("acme_distil.plugin")
        Traceback (most recent call last):
        ...
        AssertionError: plugin 'acme_distil.plugin':
        failed  loads: ModuleNotFoundError: No module named 'acme_distil'
    """
    failed = [str(result) for result in check_plugin(plugin) if not result.passed]
    if failed:
        raise AssertionError("\n".join([f"plugin {plugin!r}:", *failed]))
