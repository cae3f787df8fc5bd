"""One file of a cache: in a folder of this machine, or elsewhere with a copy that is made here.

Whoever opens a cache reads the beginning of every file, and of a store elsewhere no more than that.
A file is copied as a whole when its numbers are first asked for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import CacheError
from .locks import locked

LENGTH = 8  # bytes at the beginning of a safetensors file that say how long its header is


class Head(NamedTuple):
    """The beginning of a safetensors file.

    Attributes:
        data: its length field and its header; less where the file is shorter.
        size: of the whole file.
    """

    data: bytes
    size: int

    @property
    def digest(self) -> str:
        """The checksum that stands in a shard's name."""
        return digest_of(self.data)


class File(Protocol):
    """A file whose beginning can be read, and which has a path on this machine when it is asked."""

    name: str

    def head(self) -> Head:
        """Its beginning, and how large it is."""
        ...

    def path(self) -> Path:
        """A file of this machine with its contents."""
        ...

    def renew(self) -> bool:
        """Copy it again, once; False: nothing was copied, or it was done before."""
        ...


def digest_of(header: bytes) -> str:
    """The checksum that stands in a shard's name."""
    return hashlib.sha256(header).hexdigest()[:16]


def head_of(read: Callable[[int, int], bytes], size: int) -> Head:
    """The beginning of a file of so many bytes, of which ``read`` gives those from one to another.

    Two requests, where they are requests: how long a header is stands before it.
    """
    length = read(0, min(LENGTH, size))
    end = min(LENGTH + int.from_bytes(length, "little"), size)
    return Head(length + (read(LENGTH, end) if end > LENGTH else b""), size)


class LocalFile:
    """A file of this machine."""

    def __init__(self, path: Path) -> None:
        self._path, self.name = path, path.name

    def head(self) -> Head:
        with self._path.open("rb") as file:
            return head_of(
                lambda begin, end: file.read(end - begin), os.fstat(file.fileno()).st_size
            )

    def path(self) -> Path:
        return self._path

    def renew(self) -> bool:
        return False


class Copies:
    """The folder with copies of the files of one store elsewhere; any processes may share it.

    Args:
        place: the store, by which its copies are told from those of others.
        folder: for copies; None: a temporary one, which goes when this object does.
    """

    def __init__(self, place: str, folder: Path | None) -> None:
        self._place, self._given = place, folder
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="distillkit-cache-"))
            # a worker that was forked lets go of its own object, and not of its parent's folder
            weakref.finalize(self, _remove, folder, os.getpid())
        self.folder = folder / hashlib.sha256(place.encode()).hexdigest()[:16]

    def path(self, name: str, size: int, fetch: Callable[[Path], None]) -> Path:
        """The copy of a file that begins as its name says, fetched unless it is there.

        Raises:
            CacheError: what was fetched is not that file, or it cannot be written.
        """
        copy = self.folder / name
        if self._is(copy, name, size):
            return copy
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # one of 16, so that processes that want one file do not all fetch it
            number = hashlib.sha256(name.encode()).hexdigest()[0]
            with locked(self.folder / f".copying-{number}.lock", wait=True):
                if not self._is(copy, name, size):
                    self._fetch(copy, size, fetch)
        except OSError as error:
            raise CacheError(
                f"{name} cannot be copied from {self._place} to {self.folder} "
                f"({error.strerror or error}); local= names another folder"
            ) from error
        return copy

    def _fetch(self, copy: Path, size: int, fetch: Callable[[Path], None]) -> None:
        beside = copy.with_name(f".unfinished-{copy.name}")
        try:
            fetch(beside)
            if not self._is(beside, copy.name, size):
                raise CacheError(
                    f"shard {copy.name} of {self._place} was written to while it was copied, or "
                    f"did not arrive as a whole: {size} bytes were expected; try again"
                )
            beside.replace(copy)
        finally:
            beside.unlink(missing_ok=True)

    def _is(self, path: Path, name: str, size: int) -> bool:
        """Whether a file is there that has this size, and the header that the name has."""
        try:
            head = LocalFile(path).head()
        except FileNotFoundError:
            return False
        return head.size == size and head.digest == name.split(".")[-2]

    def forget(self, name: str) -> None:
        """Remove the copy of a file."""
        (self.folder / name).unlink(missing_ok=True)

    def __reduce__(self) -> tuple[object, ...]:
        return Copies, (self._place, self._given)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
