"""Whose signals a cache holds: of which weights, adapter, preprocessing and recipe."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError
from torch import Tensor, nn

from .._backbone.adapter import Adapter
from .._capture.wrappers import unwrapped
from .._version import installed_version
from ..errors import CacheError
from .spec import SignalSpec

FORMAT = 1
HEADER = "cache.json"
_CHUNK = 1 << 26
_OF_ADAPTERS = ("streams", "outputs", "returns", "tables", "masks", "entries", "sources")
_AT_AN_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Header(BaseModel):
    """What is the same for every example of a cache.

    Attributes:
        format: of the files.
        version: of distillkit, which filled it.
        teacher: the class of the model.
        weights: the checksum of its weights, or the name that somebody gave them.
        adapter: its class, and the checksum of what it reads.
        preprocessing: the checksum of what was declared, or the name; None: nothing was.
        key: the batch entries that tell examples apart.
        inputs: the batch entries that the teacher read.
        compared: those of them whose fingerprints are stored.
        error: the largest mean error that a coding may have.
        signals: how each signal is written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    _read: str | None = PrivateAttr(None)

    format: int = FORMAT
    version: str
    teacher: str
    weights: str
    adapter: str
    preprocessing: str | None
    key: tuple[str, ...]
    inputs: tuple[str, ...]
    compared: tuple[str, ...]
    error: float
    signals: tuple[SignalSpec, ...]

    def model_post_init(self, context: str | None) -> None:
        self._read = context

    @property
    def checksum(self) -> str:
        """Of all of this; every shard says it, so that none is taken for one of another cache."""
        # as the file has it: another version of this class may say more
        return self._read or _checksum(self.model_dump(mode="json"))

    def to_bytes(self) -> bytes:
        """The file, with a checksum of its own."""
        body = self.model_dump(mode="json")
        return json.dumps({"checksum": _checksum(body), "header": body}, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> Header:
        """The header of a file.

        Raises:
            CacheError: a file that was changed, or is of another version of the format.
        """
        try:
            table = json.loads(data)
            body, checksum = table["header"], table["checksum"]
        except (ValueError, KeyError, TypeError) as error:
            raise CacheError(f"{place}/{HEADER} is damaged: {error}") from error
        if _checksum(body) != checksum:
            raise CacheError(f"{place}/{HEADER} is damaged: its checksum is another")
        if body.get("format") != FORMAT:
            raise CacheError(
                f"{place} is written in format {body.get('format')}, and this is distillkit "
                f"{installed_version()}, which reads {FORMAT}: fill a new cache"
            )
        try:
            return cls.model_validate(body, context=checksum)
        except ValidationError as error:
            raise CacheError(f"{place}/{HEADER} says what nobody wrote: {error}") from error


def _checksum(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def teacher_name(model: nn.Module) -> str:
    """The class of the model inside of all wrappers."""
    kind = type(unwrapped(model))
    return f"{kind.__module__}.{kind.__qualname__}"


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 of every weight and buffer, by name, shape, dtype and bytes.

    Raises:
        CacheError: weights that are not all here: sharded, offloaded or on the meta device.
    """
    digest = hashlib.sha256()
    for name, x in sorted(unwrapped(model).state_dict().items()):
        for part, plain in _plain_tensors(name, x):
            if not isinstance(plain, Tensor):
                digest.update(f"{part} {plain!r}".encode())
                continue
            digest.update(f"{part} {tuple(plain.shape)} {plain.dtype}".encode())
            flat = plain.detach().contiguous().reshape(-1).view(torch.uint8)
            for start in range(0, len(flat), _CHUNK):
                digest.update(flat[start : start + _CHUNK].cpu().numpy().data)
    return digest.hexdigest()[:32]


def _plain_tensors(name: str, x: Any) -> Iterable[tuple[str, Any]]:
    """A tensor, those that a quantised one or a state is made of, and plain data.

    Raises:
        CacheError: what is not here, or is neither.
    """
    if isinstance(x, Mapping):
        return [pair for key in x for pair in _plain_tensors(f"{name}.{key}", x[key])]
    if isinstance(x, (tuple, list)):
        return [pair for i, one in enumerate(x) for pair in _plain_tensors(f"{name}.{i}", one)]
    if not isinstance(x, Tensor):
        if _AT_AN_ADDRESS.search(repr(x)):
            raise CacheError(
                f"the teacher's state {name!r} is {type(x).__name__}, which has no checksum. "
                f"{_NAME_THEM}"
            )
        return [(name, x)]
    if x.is_meta or hasattr(x, "full_tensor"):
        raise CacheError(
            f"the teacher's weight {name!r} is not here as a whole (sharded, offloaded or on the "
            f"meta device), so the weights have no checksum. {_NAME_THEM}"
        )
    if x.is_quantized:
        # its steps and zero points are numbers beside, one or many
        steps = [x.q_scale(), x.q_zero_point()] if _has_one_step(x) else _steps_of(x)
        return [(name, x.int_repr()), *_plain_tensors(f"{name}.steps", steps)]
    if type(x) in (Tensor, nn.Parameter) or not hasattr(x, "__tensor_flatten__"):
        return [(name, x)]
    inner, _ = x.__tensor_flatten__()
    return [pair for one in inner for pair in _plain_tensors(f"{name}.{one}", getattr(x, one))]


def _has_one_step(x: Tensor) -> bool:
    return x.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)


def _steps_of(x: Tensor) -> list[Any]:
    return [x.q_per_channel_scales(), x.q_per_channel_zero_points()]


_NAME_THEM = 'Name them yourself: fill(..., weights="vilt-b32-finetuned-vqa, revision abc")'


def adapter_name(adapter: Adapter) -> str:
    """An adapter's class, with the checksum of what it reads of a model."""
    kind = type(adapter)
    table = {name: _readable(getattr(adapter, name, None)) for name in _OF_ADAPTERS}
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]
    return f"{kind.__module__}.{kind.__qualname__} {digest}"


def _readable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _readable(one) for key, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [_readable(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


def preprocessing_name(given: Any) -> str | None:
    """What was declared of the preprocessing: a name as it is, anything else as a checksum.

    A processor of transformers is known by what it would save of itself.
    """
    if given is None or isinstance(given, str):
        return given
    table = given.to_dict() if hasattr(given, "to_dict") else given
    try:
        text = json.dumps(table, sort_keys=True, default=_said)
    except (TypeError, ValueError) as error:
        raise CacheError(
            "preprocessing is a name, a processor with to_dict(), or plain data; got "
            f"{type(given).__name__}: {error}"
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _said(value: object) -> object:
    """What JSON has no form for, as text that is the same in every process."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    text = str(value)
    if _AT_AN_ADDRESS.search(text):
        raise TypeError(f"{text} is another text in every process")
    return text


def check_same(place: str, stored: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Refuse a cache of something else, and say what is another.

    Raises:
        CacheError: each thing that differs, on a line of its own.
    """
    others = [
        f"  {name}: {stored[name]!r} in the cache, {value!r} here"
        for name, value in given.items()
        if stored[name] != value
    ]
    if others:
        raise CacheError(
            f"{place} holds signals of something else:\n" + "\n".join(others) + "\n"
            "Fill another folder, or remove this one"
        )
