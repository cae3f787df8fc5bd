"""Which modules of a model are looked at, and the hooks of one recording."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

from torch import nn

from .._plugins.specs import OperationSpec
from .._torch_private import may_nest
from ..errors import CaptureError
from . import operations
from ._watch.kernels import ShownFunctions
from .names import ModuleNames, module_at
from .recorder import Chosen, Recorder
from .shared import ignore, listen, run_padded
from .stacked import split_call
from .watcher import Watcher
from .wrappers import unwrapped


class _Watched(NamedTuple):
    """One thing that hooks are put on.

    Attributes:
        module: the module, or the owner of a method.
        path: its name in ``named_modules()``.
    """

    module: nn.Module
    path: str


class _LookedAt(NamedTuple):
    """The modules that one recording puts hooks on.

    Attributes:
        chosen: the modules whose attention is wanted, and chosen ones inside of them.
        outputs: the modules whose output is wanted.
        places: where each module was found, segment by segment, and the module.
    """

    chosen: tuple[str, ...]
    outputs: tuple[str, ...]
    places: tuple[tuple[tuple[str, ...], nn.Module], ...]


_START = ("start", "")
_NOTHING_ELSE = nullcontext()


class Scope:
    """Which modules of one model are looked at; ``with scope.recording()`` looks.

    Between recordings nothing is on the model, unless a compiler has the hooks in its code.

    Args:
        model: the model that is called.
        patterns: as of :func:`capture`.
        outputs: as of :func:`capture`.
        returns: as of :func:`capture`.
        keep_outputs: also hold what became of the values, to check the reading against.
        also: further operations, that nobody registered.

    Raises:
        CaptureError: a pattern that matches no module.
    """

    def __init__(
        self,
        model: nn.Module,
        patterns: Sequence[str],
        *,
        outputs: Iterable[str] = (),
        returns: Iterable[str] = (),
        keep_outputs: bool = False,
        also: Iterable[OperationSpec] = (),
    ) -> None:
        self.model = model
        self.key = tuple(patterns), tuple(outputs), tuple(returns)
        self._keep_outputs = keep_outputs
        self._readers = operations.readers(also)
        self._shown = ShownFunctions(self._readers)
        self._lock = threading.Lock()
        self._idle: list[Watcher] = []
        self._running: list[Watcher] = []
        self.resolve()

    def resolve(self) -> None:
        """Find the modules that the patterns name, now.

        Raises:
            CaptureError: a pattern that matches no module.
        """
        self.close()
        patterns, outputs, returns = self.key
        self.names = names = ModuleNames(self.model)
        chosen = names.matching_all(patterns or ["**"])
        wanted = names.matching_all(outputs)
        classes = {name: type(names.modules[name]).__name__ for name in chosen}
        methods = tuple(split_call(name)[0] for name in returns)
        stacked = [pattern for pattern in outputs if split_call(pattern)[1]]
        every = {
            *names.matching_all(stacked),
            *(split_call(name)[0] for name in returns if split_call(name)[1]),
        }
        self.chosen = Chosen(
            classes, tuple(wanted), methods, bool(patterns), names.plain, frozenset(every)
        )
        self._methods = [(name, *names.method(name)) for name in methods]
        self._encoders = [
            module
            for module in names.modules.values()
            if isinstance(module, nn.TransformerEncoder) and may_nest(module)
        ]
        self._watched = {
            name: _Watched(names.modules[name], names.paths[name]) for name in {*chosen, *wanted}
        }
        self._plans: dict[tuple[frozenset[str] | None, frozenset[str] | None], _LookedAt] = {}
        self._is_compiled = bool(names.compiled(self.model))

    @property
    def stack(self) -> tuple[str, ...]:
        """The chosen modules that are running now, outermost first, in every thread."""
        return tuple(name for watcher in self._running for name in watcher.stack)

    @property
    def is_running(self) -> bool:
        """Whether anybody records now."""
        return bool(self._running)

    @property
    def is_traced(self) -> bool:
        """Whether a compiler has the hooks in its code, so that they stay on the model."""
        return any(watcher.traced for watcher in (*self._idle, *self._running))

    def compiled(self) -> list[str]:
        """The modules that run compiled, each with what is in it."""
        return self.names.compiled(self.model)

    @contextmanager
    def recording(
        self,
        held: frozenset[str] | None = None,
        outputs: frozenset[str] | None = None,
        *,
        detach: bool = False,
        entered: nn.Module | None = None,
    ) -> Iterator[Recorder]:
        """Write down what the model does in this thread, until the block ends, however it ends.

        Args:
            held: the chosen modules whose attention is wanted; None: all.
            outputs: the modules whose output is wanted, of those that were named; None: all.
            detach: record without gradient.
            entered: a module whose input is wanted: ``recorder.entered``, of every call.

        Raises:
            CaptureError: compiled code is being recorded by this thread already.
        """
        recorder = Recorder(self.chosen, held, detach=detach)
        looked_at = self._looked_at(held, outputs)
        with self._alone():
            watcher = self._take()
            try:
                self._attach(watcher, looked_at)
                if entered is not None:
                    _attach_to_input(watcher, entered)
                with self._surroundings():
                    watcher.thread = threading.get_ident()
                    watcher.recorder = recorder
                    try:
                        yield recorder
                    finally:
                        watcher.unwind()
            finally:
                self._give_back(watcher)

    def _alone(self) -> AbstractContextManager[Any]:
        """The lock of a compiled model: compiled code cannot tell threads apart."""
        return _lock_of(self.model) if self._is_compiled or self.is_traced else _NOTHING_ELSE

    def _surroundings(self) -> AbstractContextManager[Any]:
        """The changes that a recording makes in the process, where it makes any."""
        if not self._encoders and self._shown.is_empty:
            return _NOTHING_ELSE
        stack = ExitStack()
        with stack:
            for encoder in self._encoders:
                stack.enter_context(run_padded(encoder))
            self._shown.open()
            stack.callback(self._shown.close)
            return stack.pop_all()

    def close(self) -> None:
        """Leave nothing on the model, compiled or not."""
        with self._lock:
            for watcher in self._idle:
                self._detach(watcher)
            self._idle.clear()

    def _take(self) -> Watcher:
        """A watcher that nobody uses: the one that compiled code knows, where there is one."""
        with self._lock:
            if any(watcher.traced for watcher in self._running):
                raise CaptureError(
                    "this model is compiled and is being recorded already, and compiled code "
                    "records for one at a time"
                )
            watcher = self._idle.pop() if self._idle else self._new_watcher()
            self._running.append(watcher)
        return watcher

    def _new_watcher(self) -> Watcher:
        return Watcher(self, self._readers, keep_outputs=self._keep_outputs)

    def _give_back(self, watcher: Watcher) -> None:
        watcher.recorder = None
        if not watcher.traced:
            self._detach(watcher)
        with self._lock:
            self._running.remove(watcher)
            self._idle.append(watcher)

    def is_current(
        self, held: frozenset[str] | None = None, outputs: frozenset[str] | None = None
    ) -> bool:
        """Whether the modules that a recording looks at are still those of the model."""
        for segments, module in self._looked_at(held, outputs).places:
            if module_at(self.model, segments) is not module:
                return False
        return True

    def _looked_at(self, held: frozenset[str] | None, outputs: frozenset[str] | None) -> _LookedAt:
        """The modules that a recording puts hooks on; worked out once."""
        known = self._plans.get((held, outputs))
        if known is None:
            known = self._plans[held, outputs] = self._planned(held, outputs)
        return known

    def _planned(self, held: frozenset[str] | None, outputs: frozenset[str] | None) -> _LookedAt:
        classes = self.chosen.classes
        chosen, wanted = tuple(classes), self.chosen.outputs
        if held is not None:  # and chosen ones inside of them: an operation is theirs
            inner = [n for n in classes if any(not h or n.startswith(f"{h}.") for h in held)]
            chosen = tuple(dict.fromkeys([*held, *inner]))
        if outputs is not None:
            wanted = tuple(outputs)
        everything = self._watched if held is None or outputs is None else {*chosen, *wanted}
        watched = [self._watched[name] for name in everything]
        places = [(tuple(one.path.split(".")) if one.path else (), one.module) for one in watched]
        return _LookedAt(chosen, wanted, tuple(places))

    def _attach(self, watcher: Watcher, looked_at: _LookedAt) -> None:
        """Put the hooks on, those that are not there yet."""
        attached = watcher.attached
        if _START not in attached:
            hooks = watcher.hooks(_START, "", self.model)
            attached[_START] = [
                self.model.register_forward_pre_hook(hooks.start, prepend=True, with_kwargs=True)
            ]
        for name in looked_at.chosen:
            if (key := ("attention", name)) not in attached:
                module = self._watched[name].module
                hooks = watcher.hooks(key, name, module)
                attached[key] = [
                    module.register_forward_pre_hook(hooks.enter),
                    module.register_forward_hook(hooks.leave, always_call=True),
                ]
        for name in looked_at.outputs:
            if (key := ("output", name)) not in attached:
                module = self._watched[name].module
                hooks = watcher.hooks(key, name, module)
                attached[key] = [module.register_forward_hook(hooks.keep_output)]
        for name, owner, method in self._methods:
            if (key := ("method", name)) not in attached:
                attached[key] = [_Listening(watcher, name, owner, method)]

    def _detach(self, watcher: Watcher) -> None:
        for handles in watcher.attached.values():
            for handle in handles:
                handle.remove()
        watcher.attached.clear()


def _attach_to_input(watcher: Watcher, module: nn.Module) -> None:
    """Put the hook on that keeps what a module is given, where it is not there yet."""
    if (key := ("input", str(id(module)))) not in watcher.attached:
        hooks = watcher.hooks(key, "", module)
        watcher.attached[key] = [module.register_forward_pre_hook(hooks.keep_input)]


class _Listening:
    """A listener of one method, as a handle to remove."""

    def __init__(self, watcher: Watcher, name: str, owner: nn.Module, method: str) -> None:
        self._watcher, self._name, self._owner, self._method = watcher, name, owner, method
        self._listener = self._returned  # one object: each access of a bound method makes another
        listen(owner, method, self._listener)

    def _returned(self, value: Any) -> None:
        watcher = self._watcher
        if watcher.recorder is not None and watcher.is_on():
            watcher.recorder.keep_returned(self._name, value)

    def remove(self) -> None:
        ignore(self._owner, self._method, self._listener)


_compiled_locks: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


def _lock_of(model: nn.Module) -> Any:
    """The lock of everybody who records one compiled model."""
    with _locks_lock:
        return _compiled_locks.setdefault(unwrapped(model), threading.RLock())
