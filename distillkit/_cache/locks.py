"""Locks of the operating system, which end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_locked: set[IO[str]] = set()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a file, which is made where there is none.

    Raises:
        BlockingIOError: somebody else holds it, and ``wait`` is false.
        OSError: there can be no such file.
    """
    with path.open("a+") as file:
        _take(file, wait=wait)
        _locked.add(file)
        try:
            yield
        finally:
            _locked.discard(file)


def _let_go() -> None:
    """In a process that was forked, a loader's worker, say: only the holder itself keeps a lock.

    A worker that lives on for a while would keep a writer that was killed from going on.
    """
    for file in _locked:
        file.close()
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _take(file: IO[str], *, wait: bool) -> None:
    if os.name == "nt":
        import msvcrt

        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            except OSError as error:
                if not wait:
                    raise BlockingIOError(*error.args) from error
                time.sleep(0.05)
            else:
                return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
