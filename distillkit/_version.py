"""The version of distillkit, from the metadata of the installed distribution alone."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version

# A checkout on the path has no metadata. This is a valid version that sorts below every release,
# so that whoever compares versions gets an answer.
NOT_INSTALLED = "0+unknown"


@functools.cache  # metadata is a file, read anew each time
def installed_version() -> str:
    """The installed version; ``"0+unknown"`` where distillkit runs from a checkout on the path."""
    try:
        return version("distillkit")
    except PackageNotFoundError:
        return NOT_INSTALLED
