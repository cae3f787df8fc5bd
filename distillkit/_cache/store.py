"""Where a cache's files are: a folder, or an object store by way of fsspec.

A file appears whole or not at all: it is written beside its name, brought to the disk and renamed;
object stores put whole objects anyway. What a process has not finished when it dies is a file that
nobody reads, and the next writer removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..errors import CacheError

_UNFINISHED = ".unfinished-"


class Store:
    """The files of one cache.

    Args:
        place: a folder, or a URL that fsspec knows, such as ``"s3://bucket/cache"``.
        local: of a store elsewhere, the folder for copies of what is read; a temporary one by
            default.
        options: of the file system, as fsspec takes them.
    """

    def __init__(
        self, place: str | Path, local: str | Path | None, options: dict[str, Any]
    ) -> None:
        self.place = str(place)
        try:
            self._system, self._root = fsspec.core.url_to_fs(self.place, **options)
        except (ImportError, ValueError) as error:
            raise CacheError(f"{self.place}: {error}") from error
        self.is_local = isinstance(self._system, LocalFileSystem)
        self.folder: Path | None = Path(self._root) if self.is_local else None
        self._copies = None if local is None else Path(local)

    def names(self) -> list[str]:
        """The files that are there, sorted."""
        if self.folder is not None:
            found = self.folder.iterdir() if self.folder.is_dir() else ()
            return sorted(one.name for one in found if not one.name.startswith("."))
        try:
            self._system.invalidate_cache()
            found = self._system.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(one.rstrip("/").rsplit("/", 1)[-1] for one in found)

    def write(self, name: str, data: bytes, *, writer: str = "") -> None:
        """Put a whole file there.

        Raises:
            CacheError: it could not be written; nothing of it is left.
        """
        if self.folder is None:
            self._system.pipe_file(f"{self._root}/{name}", data)
            return
        with self._beside(name, data, writer) as beside:
            beside.replace(self.folder / name)

    def create(self, name: str, data: bytes, *, writer: str = "") -> bool:
        """Put a whole file there, if there is none of that name; False: there is one."""
        if self.folder is None:
            if name in self.names():
                return False
            self.write(name, data)
            return True
        with self._beside(name, data, writer) as beside:
            try:
                os.link(beside, self.folder / name)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                if (self.folder / name).exists():
                    return False
                beside.replace(self.folder / name)
        return True

    @contextlib.contextmanager
    def _beside(self, name: str, data: bytes, writer: str) -> Iterator[Path]:
        """A whole file on the disk that is yet to get its name; otherwise nothing of it is left."""
        assert self.folder is not None
        beside = self.folder / _unfinished(writer)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield beside
            self._sync_folder()
        except OSError as error:
            raise CacheError(
                f"{self.folder / name} cannot be written ({error.strerror or error}); what was "
                "stored before is whole, and the next fill goes on from there"
            ) from error
        finally:  # whatever interrupts it
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """A whole file."""
        if self.folder is not None:
            return (self.folder / name).read_bytes()
        data: bytes = self._system.cat_file(f"{self._root}/{name}")
        return data

    def path(self, name: str) -> Path:
        """A file of this machine with the contents of a file: itself, or a copy that stays."""
        if self.folder is not None:
            return self.folder / name
        if self._copies is None:
            self._copies = Path(tempfile.mkdtemp(prefix="distillkit-cache-"))
        folder = self._copies / hashlib.sha256(self.place.encode()).hexdigest()[:16]
        copy = folder / name
        if not copy.exists():
            folder.mkdir(parents=True, exist_ok=True)
            beside = folder / _unfinished("")
            self._system.get_file(f"{self._root}/{name}", str(beside))
            beside.replace(copy)
        return copy

    def remove(self, name: str) -> None:
        """Delete a file, and its copy."""
        if self.folder is not None:
            (self.folder / name).unlink()
            return
        self._system.rm_file(f"{self._root}/{name}")
        self.path_of_copy(name).unlink(missing_ok=True)

    def path_of_copy(self, name: str) -> Path:
        """Where the copy of a file is, or would be."""
        folder = hashlib.sha256(self.place.encode()).hexdigest()[:16]
        return (self._copies or Path(tempfile.gettempdir())) / folder / name

    def free_bytes(self) -> int | None:
        """How much still fits; None: the place does not say."""
        if self.folder is None:
            return None
        there = self.folder
        while not there.exists():
            there = there.parent
        found = os.statvfs(there) if hasattr(os, "statvfs") else None
        return None if found is None else found.f_bavail * found.f_frsize

    @contextlib.contextmanager
    def writing(self, writer: str) -> Iterator[None]:
        """Be the one who writes under a name, and remove what a dead writer of it has left.

        Raises:
            CacheError: another process writes under that name.
        """
        if self.folder is None:
            yield
            return
        path = self.folder / f".{writer}.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:
            raise CacheError(
                f"{self.folder} cannot be written to ({error.strerror or error})"
            ) from error
        with file:
            _lock(file, path, writer)
            _locked.add(file)
            try:
                for old in self.folder.glob(f"{_UNFINISHED}{writer}.*"):
                    old.unlink(missing_ok=True)
                yield
            finally:
                _locked.discard(file)

    def _sync_folder(self) -> None:
        if os.name != "posix" or self.folder is None:
            return
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


_locked: set[IO[str]] = set()


def _let_go() -> None:
    """In a process that was forked, a loader's worker, say: only the writer itself keeps a lock.

    A worker that lives on for a while would keep a writer that was killed from going on.
    """
    for file in _locked:
        file.close()
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _unfinished(writer: str) -> str:
    """A name that nobody reads; the dot ends the writer's, which has none itself."""
    return f"{_UNFINISHED}{writer}.{uuid.uuid4().hex}"


def _lock(file: IO[str], path: Path, writer: str) -> None:
    """A lock of the operating system, which ends with the process, however that ends."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise CacheError(
            f"another process is writing {path.parent} as {writer!r}; two writers of one name are "
            "refused. Processes that fill one cache side by side have ranks (torchrun), or names "
            "of their own: fill(..., writer='b')"
        ) from error
