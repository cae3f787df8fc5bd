"""What recordings change on a model or in the process, counted: the last one puts it back.

Two recordings may overlap, in one thread or in several, and end in any order.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from .._torch_private import nest

_LOCK = threading.RLock()
Listener = Callable[[Any], None]


class ShownMethod:
    """A bound method that shows what it returns to whoever listens.

    A copy or a pickle of its owner gets the plain method.
    """

    def __init__(self, owner: nn.Module, method: str) -> None:
        self._owner, self._method = owner, method
        self.replaced = vars(owner).get(method)  # somebody's own
        self.original = getattr(owner, method)
        self.listeners: list[Listener] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        value = self.original(*args, **kwargs)
        for listener in self.listeners:
            listener(value)
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(type(self._owner), self._method).__get__(memo[id(self._owner)])

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._owner, self._method)


def listen(owner: nn.Module, method: str, listener: Listener) -> None:
    """Call ``listener`` with what the method returns, until :func:`ignore`."""
    with _LOCK:
        shown = vars(owner).get(method)
        if not isinstance(shown, ShownMethod):
            shown = ShownMethod(owner, method)
            object.__setattr__(owner, method, shown)
        shown.listeners = [*shown.listeners, listener]


def ignore(owner: nn.Module, method: str, listener: Listener) -> None:
    """Undo :func:`listen`; the last listener leaves the method as it was."""
    with _LOCK:
        shown = vars(owner).get(method)
        if not isinstance(shown, ShownMethod):
            return  # the owner's user has replaced it in the meantime
        shown.listeners = [one for one in shown.listeners if one is not listener]
        if shown.listeners:
            return
        if shown.replaced is None:
            object.__delattr__(owner, method)
        else:
            object.__setattr__(owner, method, shown.replaced)


_held: weakref.WeakKeyDictionary[nn.TransformerEncoder, int] = weakref.WeakKeyDictionary()


@contextmanager
def run_padded(encoder: nn.TransformerEncoder) -> Iterator[None]:
    """Run without nested tensors, which go past the attention modules, or crash."""
    with _LOCK:
        _held[encoder] = _held.get(encoder, 0) + 1
        settled = nest(encoder, allowed=False)
    try:
        with nullcontext() if settled else _without_fast_path():
            yield
    finally:
        with _LOCK:
            _held[encoder] -= 1
            if not _held[encoder]:
                nest(encoder, allowed=True)
                del _held[encoder]


_slowed = 0  # blocks that are open, in all threads
_was_fast = True


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Keep the whole process off torch's fast path of attention, which makes nested tensors.

    Only the first block turns it off and only the last one puts it back, so that threads may
    overlap; a path that its user has turned off stays off.
    """
    global _slowed, _was_fast
    with _LOCK:
        if _slowed == 0:
            _was_fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _slowed += 1
    try:
        yield
    finally:
        with _LOCK:
            _slowed -= 1
            if _slowed == 0:
                torch.backends.mha.set_fastpath_enabled(_was_fast)
