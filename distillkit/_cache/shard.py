"""One file of examples: written whole, and read example by example with every byte checked.

A shard is a safetensors file with one flat array for each part. Its header also says which examples
it holds, how long each of them is and the checksum of each one's numbers in each array. The file's
name ends with the checksum of that header. So whatever byte is changed, in the numbers, the header
or the name, is found by whoever reads it, without reading the rest of the file.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from ..errors import CacheError
from .files import LENGTH, File, digest_of
from .spec import PartSpec

Numbers: TypeAlias = "np.ndarray[Any, Any]"

_RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_NAME = re.compile(r"(?P<writer>[\w-]+)\.(?P<number>\d{6})\.(?P<digest>[0-9a-f]{16})\.safetensors")
_OURS = "distillkit"  # the entry of the file's metadata that is ours


class Contents(NamedTuple):
    """What a shard says of its examples; one number for each of them where it says no more.

    Attributes:
        cache: the checksum of the header of the cache that it belongs to.
        keys: of the examples, as JSON.
        lengths: token axis -> how many tokens.
        wholes: token axis -> how long the sequence was, with its padding.
        places: token axis -> where all examples' tokens were in it, one after another.
        inputs: batch entry -> the fingerprint of what the teacher saw.
        checksums: part -> CRC-32 of the numbers.
    """

    cache: str
    keys: list[str]
    lengths: dict[str, Numbers]
    wholes: dict[str, Numbers]
    places: dict[str, Numbers]
    inputs: dict[str, Numbers]
    checksums: dict[str, Numbers]

    def to_json(self) -> str:
        """The text in a shard's header; numbers in base64, which is read at once."""
        table: dict[str, Any] = {"cache": self.cache, "keys": self.keys}
        for field, dtype in _COLUMNS.items():
            table[field] = {
                key: base64.b64encode(np.asarray(x, dtype).tobytes()).decode()
                for key, x in getattr(self, field).items()
            }
        return json.dumps(table)

    @classmethod
    def from_json(cls, text: str) -> Contents:
        """What :meth:`to_json` wrote."""
        table = json.loads(text)
        columns = {
            field: {
                key: np.frombuffer(base64.b64decode(x), dtype) for key, x in table[field].items()
            }
            for field, dtype in _COLUMNS.items()
        }
        return cls(table["cache"], table["keys"], **columns)


_COLUMNS = {"lengths": "<i4", "wholes": "<i4", "places": "<i4", "inputs": "<i8", "checksums": "<u4"}


class Example(NamedTuple):
    """One example to be written, or one that was read.

    Attributes:
        key: as JSON.
        arrays: part -> its numbers, as unsigned integers of the same width.
        lengths: token axis -> how many tokens.
        wholes: token axis -> how long the sequence is, with padding.
        places: token axis -> where its tokens are; None: at the start.
        inputs: batch entry -> fingerprint.
    """

    key: str
    arrays: Mapping[str, Numbers]
    lengths: Mapping[str, int]
    wholes: Mapping[str, int]
    places: Mapping[str, Numbers | None]
    inputs: Mapping[str, int]


def raw(x: torch.Tensor) -> Numbers:
    """A tensor's numbers as unsigned integers of the same width."""
    plain = x.detach().cpu().contiguous()
    width = torch.uint8 if plain.dtype.itemsize == 1 else _SIGNED[plain.dtype.itemsize]
    return plain.view(width).numpy().view(_RAW[plain.dtype.itemsize])


def tensor_of(array: Numbers, dtype: torch.dtype) -> torch.Tensor:
    """The tensor whose numbers these are."""
    width = torch.uint8 if dtype.itemsize == 1 else _SIGNED[dtype.itemsize]
    signed = array.view(np.uint8 if dtype.itemsize == 1 else f"i{dtype.itemsize}")
    return torch.from_numpy(signed).view(width).view(dtype)


_SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def encode(
    examples: Sequence[Example], dtypes: Mapping[str, torch.dtype], cache: str
) -> tuple[bytes, str]:
    """A shard's bytes and the checksum of its header."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise CacheError(
            "a signal cache is written by safetensors: pip install 'distillkit[cache]'"
        ) from error
    contents = Contents(
        cache=cache,
        keys=[one.key for one in examples],
        lengths=_columns([one.lengths for one in examples]),
        wholes=_columns([one.wholes for one in examples]),
        places=_some_places(examples),
        inputs=_columns([one.inputs for one in examples]),
        checksums={
            part: np.array([zlib.crc32(one.arrays[part].data) for one in examples], np.uint32)
            for part in examples[0].arrays
        },
    )
    tensors = {}
    for part, dtype in dtypes.items():
        joined = np.concatenate([one.arrays[part].reshape(-1) for one in examples])
        tensors[part] = tensor_of(joined, dtype)
    data: bytes = save(tensors, {_OURS: contents.to_json()})
    return data, digest_of(data[: LENGTH + int.from_bytes(data[:LENGTH], "little")])


def _columns(rows: Sequence[Mapping[str, int]]) -> dict[str, Numbers]:
    return {name: np.array([row[name] for row in rows], np.int64) for name in rows[0]}


def _some_places(examples: Sequence[Example]) -> dict[str, Numbers]:
    """The places on the axes where some example's tokens are elsewhere than at the start."""
    return {
        axis: np.concatenate(
            [
                np.arange(one.lengths[axis]) if one.places[axis] is None else one.places[axis]
                for one in examples
            ]
        )
        for axis in examples[0].places
        if any(one.places[axis] is not None for one in examples)
    }


def name_of(writer: str, number: int, digest: str) -> str:
    """A shard's name."""
    return f"{writer}.{number:06d}.{digest}.safetensors"


def parsed_name(name: str) -> tuple[str, int, str] | None:
    """Writer, number and checksum of a shard's name; None: it is no shard."""
    found = _NAME.fullmatch(name)
    return None if found is None else (found["writer"], int(found["number"]), found["digest"])


class Shard:
    """A shard that is read.

    Args:
        file: of which the beginning is read now, and the rest when an example is asked for.
        cache: the checksum of the cache's header.

    Raises:
        CacheError: its header is damaged, the file is cut short, or belongs to another cache.
    """

    def __init__(self, file: File, cache: str) -> None:
        self._file, self.name = file, file.name
        known = parsed_name(file.name)
        assert known is not None
        try:
            head = file.head()
        except OSError as error:
            raise self._unreadable(error) from error
        header = head.data[LENGTH:]
        if len(head.data) < LENGTH or head.digest != known[2]:
            raise CacheError(
                f"the header of shard {file.name} is damaged: its checksum is "
                f"{head.digest}, not {known[2]}. {_REPAIR}"
            )
        try:
            table = json.loads(header)
            self.contents = Contents.from_json(table.pop("__metadata__")[_OURS])
        except (ValueError, KeyError, TypeError) as error:
            raise CacheError(f"shard {self.name} was written by something else: {error}") from error
        if self.contents.cache != cache:
            raise CacheError(
                f"shard {self.name} belongs to another cache, whose header has the checksum "
                f"{self.contents.cache[:16]}, not {cache[:16]}. {_REPAIR}"
            )
        self._start = len(head.data)
        self._spans: dict[str, tuple[int, int]] = {}
        for part, entry in table.items():
            self._spans[part] = (entry["data_offsets"][0], entry["data_offsets"][1])
        self.size = self._start + max([0, *(stop for _, stop in self._spans.values())])
        if head.size != self.size:
            raise CacheError(
                f"shard {self.name} has {head.size} bytes instead of {self.size}: it was cut "
                f"short or written to. {_REPAIR}"
            )
        self._opened: _Opened | None = None
        self._ends: dict[str, Numbers] = {}

    def __len__(self) -> int:
        return len(self.contents.keys)

    @property
    def parts(self) -> list[str]:
        """Its arrays."""
        return sorted(self._spans)

    def bytes_of(self, part: str) -> int:
        """How much of the file an array takes."""
        start, stop = self._spans[part]
        return stop - start

    def example(self, row: int, parts: Iterable[PartSpec]) -> Example:
        """One example, with some of its arrays.

        Raises:
            CacheError: a byte of them is not what was written.
        """
        contents = self.contents
        return Example(
            contents.keys[row],
            {part.name: self._numbers(part, row) for part in parts},
            {axis: int(x[row]) for axis, x in contents.lengths.items()},
            {axis: int(x[row]) for axis, x in contents.wholes.items()},
            {axis: self._places(axis, row) for axis in contents.lengths},
            {entry: int(x[row]) for entry, x in contents.inputs.items()},
        )

    def _places(self, axis: str, row: int) -> Numbers | None:
        """Where an example's tokens were; None: at the start."""
        if axis not in self.contents.places:
            return None
        if axis not in self._ends:
            self._ends[axis] = np.concatenate([[0], np.cumsum(self.contents.lengths[axis])])
        begin, end = self._ends[axis][row : row + 2]
        return self.contents.places[axis][begin:end]

    def _numbers(self, part: PartSpec, row: int) -> Numbers:
        """An example's numbers of one part, flat, as unsigned integers."""
        width: int = getattr(torch, part.dtype).itemsize
        begin, end = self._ends_of(part, width)[row : row + 2].tolist()
        found = self._bytes(begin, end)
        right = int(self.contents.checksums[part.name][row])
        if zlib.crc32(found) != right and self._file.renew():  # the copy may be all that is damaged
            self.close()
            found = self._bytes(begin, end)
        if zlib.crc32(found) != right:
            raise CacheError(
                f"shard {self.name}: {part.name!r} of example {self.contents.keys[row]} is "
                f"damaged. {_REPAIR}"
            )
        return np.frombuffer(found, _RAW[width])

    def _bytes(self, begin: int, end: int) -> bytes:
        opened = self._opened  # another thread may close it meanwhile
        try:
            if opened is None:
                opened = self._opened = _Opened(self._file.path())
            return opened.read(begin, end - begin)
        except OSError as error:
            raise self._unreadable(error) from error

    def _ends_of(self, part: PartSpec, width: int) -> Numbers:
        """Where each example's numbers of a part begin in the file, and where the last ones end."""
        known = self._ends.get(part.name)
        if known is not None:
            return known
        if part.name not in self._spans:
            raise CacheError(
                f"shard {self.name} has no {part.name!r}, which the cache's header names. {_REPAIR}"
            )
        counts = np.full(len(self), width, np.int64)
        for size in part.sizes:
            counts = counts * (self.contents.lengths[size] if isinstance(size, str) else size)
        start, stop = self._spans[part.name]
        ends = self._start + start + np.concatenate([[0], np.cumsum(counts)])
        if ends[-1] != self._start + stop:
            raise CacheError(
                f"shard {self.name}: {part.name!r} has {stop - start} bytes, where its "
                f"examples have {int(counts.sum())}. {_REPAIR}"
            )
        self._ends[part.name] = ends
        return ends

    def _unreadable(self, error: OSError) -> CacheError:
        return CacheError(f"shard {self.name} cannot be read: {error.strerror or error}")

    def close(self) -> None:
        """Let go of the file."""
        self._opened = None


class _Opened:
    """A file that is open for as long as somebody reads from it.

    It is not mapped: of a mapped file that is cut short, or on a disk that fails, the system kills
    the process, and nobody learns which one it was.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def read(self, begin: int, size: int) -> bytes:
        if hasattr(os, "pread"):  # from any number of threads and forked processes at once
            return os.pread(self._file.fileno(), size, begin)
        with self._lock:
            self._file.seek(begin)
            return self._file.read(size)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


_REPAIR = (
    "`python -m distillkit cache verify FOLDER --remove` removes damaged shards; what was in them "
    "is stored again by the next fill"
)
