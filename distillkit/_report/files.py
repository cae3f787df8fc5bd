"""The files of one run: opened by one process, appended a line at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .._cache.locks import locked
from .._view.contents import Scene
from ..errors import LogError
from .lines import ATTENTION, FORMAT, LOCK, LOG, Entry, Snapshot, read, written
from .snapshots import snapshot_of


class RunFiles:
    """The files of a run's folder, which this process alone writes from :meth:`open` on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held = contextlib.ExitStack()
        self._log: BinaryIO | None = None
        self._known: set[str] | None = None  # keys of texts in the file of attention

    @property
    def are_open(self) -> bool:
        """Whether lines are written."""
        return self._log is not None

    def open(self) -> bool:
        """Take the folder; whether it held a log already.

        Raises:
            LogError: somebody else has it; a log of another version; it cannot be written.
        """
        path = self.folder / LOG
        with _named(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._held.enter_context(locked(self.folder / LOCK, wait=False))
            except BlockingIOError:
                raise LogError(
                    f"another process, or another RunLog of this one, writes the run "
                    f"{str(self.folder)!r}: close it, or give each training a folder of its own"
                ) from None
            resumed = path.is_file() and path.stat().st_size > 0
            try:
                if resumed:
                    _check_version(path)
                self._log = self._held.enter_context(path.open("ab", buffering=0))
                if not _ends_a_line(path):
                    self._log.write(b"\n")  # what was cut off stays, on a line of its own
            except BaseException:
                self.close()
                raise
        return resumed

    def append(self, entry: Entry) -> None:
        """One line of the log, in one write."""
        if self._log is not None:
            with _named(self.folder / LOG):
                self._log.write(written(entry))

    def append_attention(self, scene: Scene, step: int) -> None:
        """One line of the file of attention; what earlier lines hold is not repeated."""
        path = self.folder / ATTENTION
        # no line refers to a text that was not written: until this one is, nothing is known
        known, self._known = self._known, None
        if known is None:
            known = _keys_of(path)
        line = written(snapshot_of(scene, step, known))
        with _named(path), path.open("ab", buffering=0) as file:
            if not _ends_a_line(path):
                file.write(b"\n")
            file.write(line)
        self._known = known

    def close(self) -> None:
        """Let the folder go."""
        self._log = None
        self._held.close()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LogError(f"{str(path)!r} cannot be written: {error}") from error


def _ends_a_line(path: Path) -> bool:
    """Whether a file is empty or ends with the end of a line."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _check_version(path: Path) -> None:
    """Refuse to append to what this version does not read."""
    with path.open("rb") as file:
        first = file.readline()
    if not first.endswith(b"\n"):
        return  # the program was stopped within its first line
    try:
        entry = read(first)
    except ValueError as error:
        raise LogError(
            f"{str(path)!r} is no run log ({error}): give the training a folder of its own"
        ) from None
    if isinstance(entry, int):
        raise LogError(
            f"{str(path)!r} is a run log of format {entry}, and this distillkit writes format "
            f"{FORMAT}: give the training a folder of its own"
        )


def _keys_of(path: Path) -> set[str]:
    """The keys of the texts that a file of attention holds; what is cut off holds none."""
    found: set[str] = set()
    if not path.is_file():
        return found
    with path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                entry = read(line)
                if isinstance(entry, Snapshot):
                    found.update(entry.new)
    return found
