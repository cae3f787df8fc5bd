"""Let one chosen call of the operating system fail, or be the last that a process makes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from unittest import mock

Action = Callable[[], None]

CALLS = ("mkdir", "open", "fsync", "replace", "link", "unlink")


class Steps:
    """Counts the calls that change files; before the one with the number ``at``, acts.

    A file is written in two halves, and the call between them counts.
    """

    def __init__(self, at: int | None, action: Action) -> None:
        self.at, self.action, self.count, self.names = at, action, 0, []

    def step(self, name: str) -> None:
        self.names.append(name)
        self.count += 1
        if self.count - 1 == self.at:
            self.action()

    @contextmanager
    def watched(self) -> Iterator[Steps]:
        with ExitStack() as stack:
            for name in CALLS:
                stack.enter_context(mock.patch.object(os, name, self._before(name)))
            opened = io.open

            def open_file(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
                if set(mode).isdisjoint("wa+"):
                    return opened(file, mode, *rest, **more)
                self.step("create")
                return _InHalves(opened(file, mode, *rest, **more), self)

            stack.enter_context(mock.patch.object(io, "open", open_file))
            yield self

    def _before(self, name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            self.step(name)
            return call(*arguments, **named)

        return watched


class _InHalves:
    """A file whose every write is two, on the disk one after the other."""

    def __init__(self, file: Any, steps: Steps) -> None:
        self._file, self._steps = file, steps

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._steps.step("write")
        return half + self._file.write(data[half:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
