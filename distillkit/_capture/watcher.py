"""The watch that one thread keeps over the chosen modules of one scope while they run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from .._torch_private import is_functorch_wrapped_tensor, operator_of, take_off
from . import operations
from ._watch.calls import LOOKS, name_of, traced_name_of
from ._watch.follower import TRANSFORMED, Follower
from ._watch.history import same_source
from ._watch.sighting import FusedCall, Owner
from .recorder import Recorder, Seen, is_repeated

_WHOLE, _LOOK = "<a whole attention>", "<nothing new>"  # in place of a name
_NOTHING: Mapping[str, Any] = {}


class Handle(Protocol):
    """A handle that takes something off again."""

    def remove(self) -> None: ...


class Watcher:
    """The receiver of one recording's hooks; without a recorder it does nothing.

    Attributes:
        scope: whose modules are watched.
        recorder: where it is written down; None between recordings.
        thread: whose calls are meant.
        stack: the chosen modules that are running, outermost first.
        traced: whether a compiler has the hooks in its code, which then must stay.
    """

    def __init__(self, scope: Any, readers: dict[Any, Any], *, keep_outputs: bool) -> None:
        self.scope = scope
        self.recorder: Recorder | None = None
        self.thread = 0
        self.stack: list[str] = []
        self.traced = False
        self.follower = Follower(self.add, self.notice, self.stack, keep_outputs=keep_outputs)
        self.mode = _Mode(self, readers, keep_outputs=keep_outputs)
        self.attached: dict[tuple[str, str], list[Handle]] = {}
        self._hooks: dict[tuple[str, str], Hooks] = {}

    def hooks(self, key: tuple[str, str], name: str, module: nn.Module) -> Hooks:
        """The hooks of a module while it is recorded."""
        found = self._hooks.get(key)
        if found is None or not found.belongs_to(module):
            found = self._hooks[key] = Hooks(self, name, module)
        return found

    def is_on(self) -> bool:
        """Whether a call of a watched module, now and in this thread, is to be written down."""
        if self.recorder is None:
            return False
        # a compiler would write the number of the thread into its code
        return torch.compiler.is_compiling() or self.thread == threading.get_ident()

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward of the whole model begins."""
        assert self.recorder is not None
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim > 0]
        self.recorder.start(frozenset(a.shape[0] for a in given))

    def enter(self, name: str) -> None:
        """A chosen module begins to run."""
        assert self.recorder is not None
        if torch.compiler.is_compiling():
            self.traced = True
        self.stack.append(name)
        self.recorder.ran.append(name)
        if len(self.stack) == 1:
            self.follower.begin()
            self.mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, name: str) -> None:
        """A chosen module has returned, or raised."""
        if not self.stack or self.stack[-1] != name:
            return
        self.stack.pop()
        if not self.stack:
            self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self.follower.forget()

    def unwind(self) -> None:
        """Leave every module that an interrupt made return without its hooks.

        torch calls hooks after an ``Exception``, not after a KeyboardInterrupt or SystemExit.
        """
        was_on = bool(self.stack)
        if was_on:
            self.stack.clear()
            self.follower.forget()
        take_off(self.mode, was_on=was_on)

    def add(self, owner: Owner, seen: Seen) -> None:
        if self.recorder is not None:
            self.recorder.add(owner, seen)

    def notice(self, owner: Owner, reason: str) -> None:
        if self.recorder is not None:
            self.recorder.notice(owner, reason)

    def blind_to(self, kernel: str) -> None:
        if self.recorder is not None:
            self.recorder.blind_to(tuple(self.stack), kernel)


class Hooks:
    """The hooks of one module; in a copy of the model they do nothing."""

    def __init__(self, watcher: Watcher | None, name: str, module: nn.Module | None) -> None:
        self.watcher, self._name, self._module = watcher, name, module

    def belongs_to(self, module: nn.Module) -> bool:
        """Whether it is the module itself, and no copy of it, that these are on."""
        return module is self._module

    def _watcher_of(self, running: nn.Module) -> Watcher | None:
        watcher = self.watcher
        if watcher is None or running is not self._module or not watcher.is_on():
            return None
        return watcher

    def start(
        self, running: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        # Without kwargs, torch calls a hook that another thread is putting on or taking off at this
        # moment; such a hook belongs to that thread, and there is nothing to do here.
        watcher = self._watcher_of(running)
        if watcher is not None and kwargs is not None and not is_repeated():
            watcher.start(args, kwargs)

    def enter(self, running: nn.Module, _: object) -> None:
        watcher = self._watcher_of(running)
        if watcher is not None:
            watcher.enter(self._name)

    def leave(self, running: nn.Module, _: object, __: object) -> None:
        watcher = self._watcher_of(running)
        if watcher is not None:
            watcher.leave(self._name)

    def keep_output(self, running: nn.Module, _: object, output: object) -> None:
        watcher = self._watcher_of(running)
        if watcher is not None and watcher.recorder is not None and not is_repeated():
            watcher.recorder.keep_output(self._name, output)

    def keep_input(self, running: nn.Module, given: tuple[Any, ...]) -> None:
        watcher = self._watcher_of(running)
        if watcher is not None and watcher.recorder is not None and given and not is_repeated():
            watcher.recorder.entered.append(given[0])

    def __reduce__(self) -> tuple[type[Hooks], tuple[None, str, None]]:
        return Hooks, (None, self._name, None)

    def __deepcopy__(self, _: object) -> Hooks:
        return Hooks(None, self._name, None)


class _Mode(TorchFunctionMode):
    """Shows every torch call to the readers; on only while a chosen module runs."""

    def __init__(self, watcher: Watcher, readers: dict[Any, Any], *, keep_outputs: bool) -> None:
        super().__init__()
        self._watcher, self._readers, self._keep_outputs = watcher, readers, keep_outputs
        self._known = {**readers, **operations.OPENED}
        self._names: dict[Any, str] = {}  # of what was called before, so that it is asked once

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if torch.compiler.is_dynamo_compiling():  # which would guard what is remembered here
            return self._seen_by_compiler(func, args, kwargs or {})
        name = self._names.get(func)
        if name is None:
            name = self._names[func] = self._name_of(func)
        if name == _WHOLE:
            return self._attend(func, args, kwargs or {})
        result = func(*args, **kwargs) if kwargs else func(*args)
        if name != _LOOK:
            self._watcher.follower.saw(func, name, args, kwargs or _NOTHING, result)
        return result

    def _name_of(self, func: Callable[..., Any]) -> str:
        """The name of a function, or a mark that it is a whole attention or makes nothing new."""
        if func in self._known or type(func) in operations.OPERATORS:
            return _WHOLE
        name = name_of(func)
        return _LOOK if name in LOOKS else name

    def _seen_by_compiler(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if func in self._known or type(func) in operations.OPERATORS:
            return self._attend(func, args, kwargs)
        if func is Tensor.unflatten:  # calls super(), which the compiler breaks the graph at
            return self._seen_by_compiler(torch.unflatten, args, kwargs)
        result = func(*args, **kwargs)
        name = traced_name_of(func, args, result)
        if name not in LOOKS:
            self._watcher.follower.saw(func, name, args, kwargs, result)
        return result

    def _attend(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that may be a whole attention."""
        if func in operations.OPENED:
            with self:
                return operations.OPENED[func](*args, **kwargs)
        result = func(*args, **kwargs)
        watcher = self._watcher
        read = self._readers.get(func)
        if read is None and type(func) in operations.OPERATORS:
            read = self._readers.get(operator_of(func))
            if read is None and operations.may_attend(func, args):
                watcher.blind_to(str(func))
        if read is None:
            name = name_of(func)
            if name not in LOOKS:
                watcher.follower.saw(func, name, args, kwargs, result)
        else:
            watcher.add(tuple(watcher.stack), self._call(func, read, args, kwargs, result))
        return result

    def _call(
        self, func: Any, read: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> FusedCall:
        call = FusedCall(read, args, kwargs, result if self._keep_outputs else None)
        given = [a for a in args[:3] if isinstance(a, Tensor)]
        if given and not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(given[0]):
            call.refused = TRANSFORMED
        elif len(given) == 3:
            # the contract is (b, h, n, d); with other axes, how they were made must tell
            unfold = func is scaled_dot_product_attention and {a.ndim for a in given} != {4}
            history = self._watcher.follower.history
            call.pair = (history.node(given[0]), history.node(given[1]))
            if unfold:
                call.nodes = (*call.pair, history.node(given[2]))
            if self._keep_outputs:
                call.same_source = same_source(*call.pair)
        return call
