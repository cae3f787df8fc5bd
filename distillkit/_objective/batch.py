"""One flat batch for two models: what each side sees of it, and what nobody used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import SignalError, did_you_mean

SIDES = ("student", "teacher")


class SideOfBatch(Mapping[str, Any]):
    """A batch as one side sees it; it remembers the entries that were used.

    An entry ``teacher_input_ids`` is the teacher's own ``input_ids``: for the teacher it stands
    before the shared ``input_ids``, and the student never sees it under that name.
    """

    def __init__(self, batch: Mapping[str, Any], side: str, used: set[str]) -> None:
        self._batch, self._prefix, self._used = batch, f"{side}_", used
        self._others = tuple(f"{other}_" for other in SIDES if other != side)

    def __getitem__(self, name: str) -> Any:
        own = f"{self._prefix}{name}"
        key = own if own in self._batch else name
        value = self._batch[key]
        self._used.add(key)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._batch or f"{self._prefix}{name}" in self._batch

    def __iter__(self) -> Iterator[str]:
        shared = [name for name in self._batch if not name.startswith(self._others)]
        return iter(dict.fromkeys(name.removeprefix(self._prefix) for name in shared))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def checked_batch(batch: Any) -> Mapping[str, Any]:
    """The batch, if it has names.

    Raises:
        SignalError: a tuple or a tensor: adapters find their entries by name.
    """
    if not isinstance(batch, Mapping):
        raise SignalError(
            "a batch is a mapping from name to tensor, as adapters find their entries by name; got "
            f'{type(batch).__name__}: pass {{"input_ids": ..., "pixel_values": ...}}'
        )
    return batch


def check_all_used(batch: Mapping[str, Any], used: set[str], ignore: Iterable[str]) -> None:
    """Refuse entries that neither model, no layout and no term looked at.

    Raises:
        SignalError: the entries, and how to say that they are meant to be left alone.
    """
    left = [name for name in batch if name not in used and name not in set(ignore)]
    if left:
        raise SignalError(
            f"nothing uses the batch {'entry' if len(left) == 1 else 'entries'} "
            f"{', '.join(map(repr, left))}: neither model is called with it and no term, pair or "
            f"token layout reads it ({did_you_mean(left[0], used)}). If that is meant, say so: "
            f"Distiller(..., ignore={tuple(left)!r})"
        )
