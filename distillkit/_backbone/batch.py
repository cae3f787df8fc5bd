"""One flat batch for two models: what each side sees of it, and what nobody used."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from ..errors import SignalError, did_you_mean

Side = Literal["student", "teacher"]
_PREFIXES: dict[Side | None, tuple[str, ...]] = {
    None: ("",),
    "student": ("student_",),
    "teacher": ("teacher_",),
}
_OTHERS: dict[Side | None, tuple[str, ...]] = {
    None: (),
    "student": ("teacher_",),
    "teacher": ("student_",),
}
_LABELS = re.compile(r"(.*_)?labels?(_ids)?")


class NamedTeacher(NamedTuple):
    """One of several teachers: its name, and those of the others."""

    name: str
    others: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """The beginning of the names of its own entries."""
        return f"teacher_{self.name}_"


class SideOfBatch(Mapping[str, Any]):
    """A batch as one side sees it; it remembers the entries that were used.

    An entry ``teacher_input_ids`` is the teacher's own ``input_ids``: for the teacher it stands
    before the shared ``input_ids``, and the student never sees it under that name. An entry that is
    None is absent. Labels are the student's: the teacher, whose loss nobody reads, sees only
    ``teacher_labels``. Of several teachers, each sees ``teacher_<name>_x`` as ``x`` before
    ``teacher_x``, and no entry of the others.

    Args:
        batch: name -> tensor.
        side: whose view it is; None sees every entry as it is.
        used: the names that were read are added here.
        teacher: which of several teachers it is.
    """

    def __init__(
        self,
        batch: Mapping[str, Any],
        side: Side | None = None,
        used: set[str] | None = None,
        teacher: NamedTeacher | None = None,
    ) -> None:
        self._batch, self._side, self._teacher = batch, side, teacher
        self._prefixes, self._others = _PREFIXES[side], _OTHERS[side]
        if teacher is not None:
            self._prefixes = (teacher.prefix, *self._prefixes)
            self._others += tuple(NamedTeacher(name).prefix for name in teacher.others)
        self.used: set[str] = set() if used is None else used

    def noting(self, used: set[str]) -> SideOfBatch:
        """The same view, which notes in ``used`` what is read."""
        return SideOfBatch(self._batch, self._side, used, self._teacher)

    def key(self, name: str) -> str | None:
        """The entry of the batch that this side sees under a name; None: there is none."""
        for prefix in self._prefixes:
            own = f"{prefix}{name}"
            if self._batch.get(own) is not None and not self._is_of_another(own):
                return own
        if self._side is None or self._batch.get(name) is None or self._is_of_another(name):
            return None
        return None if self._side == "teacher" and _are_labels(name) else name

    def labels(self) -> Any:
        """The labels, for what is computed beside the model: the teacher itself never sees them.

        None: there are none.
        """
        own = self.key("labels")
        for name in ("labels", "student_labels") if own is None else (own,):
            if self._batch.get(name) is not None:
                self.used.add(name)
                return self._batch[name]
        return None

    def _is_of_another(self, entry: str) -> bool:
        """Whether an entry is one of another teacher's own."""
        return self._teacher is not None and entry.startswith(self._others)

    def says_none(self, name: str) -> bool:
        """Whether the entry is there and is None, which says that it is absent."""
        names = (name, *(f"{prefix}{name}" for prefix in self._prefixes))
        there = any(one in self._batch for one in names)
        return there and self.key(name) is None

    def __getitem__(self, name: str) -> Any:
        key = self.key(name)
        if key is None:
            raise KeyError(name)
        self.used.add(key)
        return self._batch[key]

    def __contains__(self, name: object) -> bool:
        return self.key(str(name)) is not None

    def __iter__(self) -> Iterator[str]:
        shared = [name for name in self._batch if not name.startswith(self._others)]
        names = dict.fromkeys(map(self._seen_as, shared))
        return (name for name in names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _seen_as(self, entry: str) -> str:
        """The name under which this side sees an entry."""
        own = next((prefix for prefix in self._prefixes if entry.startswith(prefix)), "")
        return entry.removeprefix(own)


@functools.cache  # a training step asks for the same few, every time
def _are_labels(name: str) -> bool:
    return _LABELS.fullmatch(name) is not None


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
    left = [name for name, x in batch.items() if x is not None and name not in used]
    if not left:
        return
    known = set(ignore)
    left = [name for name in left if name not in known]
    if left:
        raise SignalError(
            f"nothing uses the batch {'entry' if len(left) == 1 else 'entries'} "
            f"{', '.join(map(repr, left))}: neither model is called with it and no term, pair or "
            f"token layout reads it ({did_you_mean(left[0], used)}). A model takes what its "
            "forward names; what it takes as **kwargs, name in the adapter's `inputs`. If nothing "
            f"is to use it, say so: Distiller(..., ignore={tuple(left)!r})"
        )
