"""What every test shares: one thread, seeds, and code blocks of the docs as tests."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

# Kernels for a GPU are interpreted, which triton decides once in a process, when it is imported.
# `make test-gpu` says 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

if (
    importlib.util.find_spec("triton") is None
):  # whose kernels cannot be imported for their doctests
    collect_ignore_glob = ["distillkit/losses/_tiled/_triton/*"]

pytest_plugins = ["pytester"]

settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def _name_what_is_missing(namespace: dict[str, Any]) -> None:
    """For ``<!--- skip: next if(missing("accelerate"), reason="...") -->`` before a block."""
    namespace["missing"] = lambda library: importlib.util.find_spec(library) is None


# each document is one program, run in a folder of its own
pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/**/*.md", "docs/*.md", "plugins/*/README.md"],
    setup=_name_what_is_missing,
    fixtures=["in_a_folder_of_its_own"],
).pytest()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the blocks of one document together, in order, where tests run on several cores."""
    for item in items:
        if item.path.suffix == ".md":
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture(scope="module", autouse=True)
def _nothing_stays_registered() -> Iterator[None]:
    """What a module or a document registers in this process is not known to the next one."""
    from distillkit._plugins import registry

    before = registry._registered
    yield
    registry._registered = before


@pytest.fixture(scope="module")
def in_a_folder_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, _nothing_stays_registered: None
) -> Iterator[None]:
    """Documents write where they run."""
    with contextlib.chdir(tmp_path_factory.mktemp("docs")):
        yield


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("DISTILLKIT_THREADS", "1")))
    torch.manual_seed(0)
