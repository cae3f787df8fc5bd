"""Something remembered of each of some tensors, without keeping them alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")
_MOST = 256


class Memory(Generic[T]):
    """The last note about each tensor, found by the tensor itself.

    While a compiler traces, which has neither weak references nor identities, it is a list of
    tensors; it is emptied before the traced code ends.
    """

    def __init__(self) -> None:
        self._tracing = False
        self._known: dict[int, tuple[weakref.ref[Tensor], T]] = {}
        self._traced: list[tuple[Tensor, T]] = []

    def __bool__(self) -> bool:
        return bool(self._traced) if self._tracing else bool(self._known)

    def begin(self, *, tracing: bool) -> None:
        """Start empty, for code that a compiler traces or for code that runs."""
        self._tracing = tracing
        self._known = {}
        self._traced = []

    def get(self, tensor: Any) -> T | None:
        """The last note about a tensor; None: there is none."""
        if self._tracing:
            found: T | None = None
            for other, value in self._traced:
                if other is tensor:
                    found = value
            return found
        entry = self._known.get(id(tensor))
        # an identity is given again once its tensor is gone
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def put(self, tensor: Tensor, value: T) -> None:
        """Remember something of a tensor in place of what was remembered before."""
        if self._tracing:
            self._traced = [*self._traced[-_MOST:], (tensor, value)]
            return
        if len(self._known) > _MOST:
            self._known = {key: one for key, one in self._known.items() if one[0]() is not None}
        self._known[id(tensor)] = (weakref.ref(tensor), value)

    def pairs(self) -> Iterator[tuple[Tensor, T]]:
        """Every tensor that is still there, and what is remembered of it."""
        for reference, value in list(self._known.values()):
            tensor = reference()
            if tensor is not None:
                yield tensor, value
