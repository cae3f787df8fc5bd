"""Where a cache's files are: a folder, or an object store by way of fsspec.

A file appears whole or not at all: it is written beside its name, brought to the disk and renamed;
object stores put whole objects anyway. What a process has not finished when it dies is a file that
nobody reads, and the next writer removes it.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..errors import CacheError
from .files import Copies, File, Head, LocalFile, head_of
from .locks import locked

_UNFINISHED = ".unfinished-"


class Store:
    """The files of one cache.

    Args:
        place: a folder, or a URL that fsspec knows, such as ``"s3://bucket/cache"``.
        local: of a store elsewhere, the folder for copies of the files that are read; a temporary
            one by default.
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
        self._sizes: dict[str, int] = {}
        self._copies: Copies | None = None
        if self.folder is None:
            self._copies = Copies(self.place, None if local is None else Path(local))

    def names(self) -> list[str]:
        """The files that are there, sorted."""
        if self.folder is not None:
            found = self.folder.iterdir() if self.folder.is_dir() else ()
            return sorted(one.name for one in found if not one.name.startswith("."))
        try:
            self._system.invalidate_cache()
            found = self._system.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        files = {one["name"].rsplit("/", 1)[-1]: one for one in found if one["type"] == "file"}
        self._sizes |= {name: one["size"] for name, one in files.items()}
        return sorted(name for name in files if name and not name.startswith("."))

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
            return self._create_elsewhere(name, data)
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

    def _create_elsewhere(self, name: str, data: bytes) -> bool:
        if name in self.names():
            return False
        known = inspect.signature(fsspec.AbstractFileSystem.pipe_file).parameters
        mode = {"mode": "create"} if "mode" in known else {}
        try:
            self._system.pipe_file(f"{self._root}/{name}", data, **mode)
        except FileExistsError:
            return False
        # not every store has files that are made once: the last of several writers has won
        return self.read(name) == data

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
        """A whole file.

        Raises:
            FileNotFoundError: there is none.
            CacheError: it cannot be read.
        """
        try:
            if self.folder is not None:
                return (self.folder / name).read_bytes()
            data: bytes = self._system.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CacheError(
                f"{name} cannot be read from {self.place} ({error.strerror or error})"
            ) from error
        return data

    def file(self, name: str) -> File:
        """A shard, of which nothing is read yet."""
        if self.folder is not None:
            return LocalFile(self.folder / name)
        return _RemoteFile(self, name)

    @contextlib.contextmanager
    def as_stored(self, name: str) -> Iterator[File]:
        """A shard as the store has it now, whatever copies there are.

        Raises:
            CacheError: it cannot be fetched, which says nothing of the shard.
        """
        if self._copies is None:
            yield self.file(name)
            return
        try:
            self._copies.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._copies.folder) as folder:
                self._fetch(name, Path(folder) / name)
                yield LocalFile(Path(folder) / name)
        except OSError as error:
            raise CacheError(
                f"{name} cannot be fetched from {self.place} ({error.strerror or error})"
            ) from error

    def remote_head(self, name: str) -> Head:
        """The beginning of a file of a store elsewhere."""
        path = f"{self._root}/{name}"
        size = self._sizes.get(name)
        if size is None:  # written since the files were listed
            size = self._sizes[name] = self._system.size(path)
        return head_of(lambda begin, end: self._system.cat_file(path, start=begin, end=end), size)

    def copied(self, name: str) -> Path:
        """The copy of a file, which is made now unless it is there."""
        assert self._copies is not None
        return self._copies.path(name, self._sizes[name], partial(self._fetch, name))

    def forget_copy(self, name: str) -> None:
        """Remove the copy of a file."""
        assert self._copies is not None
        self._copies.forget(name)

    def _fetch(self, name: str, to: Path) -> None:
        self._system.get_file(f"{self._root}/{name}", str(to))

    def remove(self, name: str) -> None:
        """Delete a file, and its copy."""
        if self._copies is None:
            assert self.folder is not None
            (self.folder / name).unlink()
            return
        self._system.rm_file(f"{self._root}/{name}")
        self._copies.forget(name)

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
        with contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.folder / f".{writer}.lock", wait=False))
            except BlockingIOError as error:
                raise CacheError(
                    f"another process is writing {self.folder} as {writer!r}; two writers of one "
                    "name are refused. Processes that fill one cache side by side have ranks "
                    "(torchrun), or names of their own: fill(..., writer='b')"
                ) from error
            except OSError as error:
                raise CacheError(
                    f"{self.folder} cannot be written to ({error.strerror or error})"
                ) from error
            for old in self.folder.glob(f"{_UNFINISHED}{writer}.*"):
                old.unlink(missing_ok=True)
            yield

    def _sync_folder(self) -> None:
        if os.name != "posix" or self.folder is None:
            return
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _unfinished(writer: str) -> str:
    """A name that nobody reads; the dot ends the writer's, which has none itself."""
    return f"{_UNFINISHED}{writer}.{uuid.uuid4().hex}"


class _RemoteFile:
    """A shard of a store elsewhere: its beginning by requests for ranges, then a copy."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self.name = store, name
        self._renewed = False

    def head(self) -> Head:
        return self._store.remote_head(self.name)

    def path(self) -> Path:
        return self._store.copied(self.name)

    def renew(self) -> bool:
        if self._renewed:
            return False
        self._renewed = True
        self._store.forget_copy(self.name)
        return True
