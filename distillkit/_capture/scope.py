"""Attention and outputs of chosen modules, recorded while the model runs inside a ``with``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from .._attention import Attention
from ..errors import CaptureError
from . import operations
from .names import matching, method_of, named_modules
from .record import Record


@contextmanager
def capture(
    model: nn.Module,
    *patterns: str,
    outputs: Iterable[str] = (),
    returns: Iterable[str] = (),
    detach: bool = False,
) -> Iterator[Record]:
    """Record the attention of chosen modules while ``model`` runs inside the ``with`` block.

    The model computes what it always computes, in whichever implementation it runs; nothing stays
    on it afterwards. A record holds the model's last forward.

    Args:
        model: any module, wrapped in DDP or not; it is the one that is called.
        patterns: dotted names of modules; ``*`` is one segment, ``**`` any number. None at all
            means every module. An operation belongs to the innermost chosen module.
        outputs: patterns of modules whose output is wanted: ``record.output(name)``.
        returns: bound methods whose return value is wanted, ``"embeddings.visual_embed"``:
            ``record.returned(name)``.
        detach: record without gradient.

    Raises:
        CaptureError: a pattern matches no module, or a chosen module recorded nothing.

    Examples:
        >>> import torch
        >>> layer = torch.nn.Module()
        >>> layer.forward = lambda x: (x @ x.mT).softmax(-1) @ x
        >>> model = torch.nn.Sequential(layer)
        >>> with capture(model, "0") as record:
        ...     _ = model(torch.zeros(1, 2, 3, 4))
        >>> record["0"]
        Attention(b=1, h=2, q=3, k=3)
    """
    scope = Scope(model, patterns, outputs=outputs, returns=returns, detach=detach)
    with scope:
        scope.active = True
        yield scope.record
        scope.record.check()


class Scope:
    """The hooks of one capture on one model; inert while ``active`` is False."""

    def __init__(
        self,
        model: nn.Module,
        patterns: Sequence[str],
        *,
        outputs: Iterable[str] = (),
        returns: Iterable[str] = (),
        detach: bool = False,
    ) -> None:
        self.active = False
        self._detach = detach
        self._stack: list[str] = []
        self._eager = operations.EagerReader(self._add, self._add_failure)
        self._mode = _Mode(self._stack, operations.readers(), self._eager, self._add)
        modules = named_modules(model)
        chosen = {n: modules[n] for n in matching(patterns or ["**"], modules, model)}
        wanted = {n: modules[n] for n in matching(outputs, modules, model)}
        methods = [method_of(name, modules, model) for name in returns]
        classes = {name: type(module).__name__ for name, module in chosen.items()}
        self.record = Record(classes, wanted, strict=bool(patterns))
        self._handles: list[RemovableHandle | _Wrapped] = []
        self._handles.append(model.register_forward_pre_hook(self._start(model), prepend=True))
        for name, module in chosen.items():
            self._watch(name, module)
        for name, module in wanted.items():
            self._handles.append(module.register_forward_hook(self._keep_output(name, module)))
        for name, owner, method in methods:
            self._handles.append(_Wrapped(owner, method, self._keep_returned(name)))

    def close(self) -> None:
        """Leave nothing on the model."""
        self.active = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._stack:
            self._stack.clear()
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watch(self, name: str, module: nn.Module) -> None:
        def enter(running: nn.Module, _: object) -> None:
            if running is module and self.active:  # a deep copy of the model has the hooks too
                self._stack.append(name)
                if len(self._stack) == 1:
                    self._mode.__enter__()  # type: ignore[no-untyped-call]

        def leave(running: nn.Module, _: object, __: object) -> None:
            if running is module and self._stack and self._stack[-1] == name:
                self._stack.pop()
                if not self._stack:
                    self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
                    self._eager.forget()

        self._handles.append(module.register_forward_pre_hook(enter))
        self._handles.append(module.register_forward_hook(leave, always_call=True))

    def _start(self, model: nn.Module) -> Callable[[nn.Module, Any], None]:
        def start(running: nn.Module, _: object) -> None:
            if running is model and self.active and not _in_backward():
                self.record.clear()

        return start

    def _keep_output(self, name: str, module: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        def keep(running: nn.Module, _: object, output: object) -> None:
            if running is module and self.active and not _in_backward():
                self.record.add_output(name, output)

        return keep

    def _keep_returned(self, name: str) -> Callable[[Any], None]:
        def keep(value: object) -> None:
            if self.active:
                self.record.add_returned(name, value)

        return keep

    def _add(self, attention: Attention) -> None:
        if not _in_backward():
            self.record.add(self._stack[-1], attention.detach() if self._detach else attention)

    def _add_failure(self, reason: str) -> None:
        self.record.add_failure(self._stack[-1], reason)


class _Mode(TorchFunctionMode):
    """Shows every torch call to the readers; on only while a chosen module runs."""

    def __init__(
        self,
        stack: list[str],
        readers: dict[Callable[..., Any], operations.Reader],
        eager: operations.EagerReader,
        add: Callable[[Attention], None],
    ) -> None:
        super().__init__()
        self._stack, self._readers, self._eager, self._add = stack, readers, eager, add

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = self._readers.get(func)
        if read is None:
            self._eager.saw((func, args, kwargs), result)
            return result
        try:
            self._add(read(*args, **kwargs))
        except CaptureError as error:
            self._eager.failed(str(error))
        return result


class _Wrapped:
    """A bound method that shows what it returns; a deep copy of its owner gets the plain method."""

    def __init__(self, owner: nn.Module, method: str, keep: Callable[[Any], None]) -> None:
        self._owner, self._name, self._keep = owner, method, keep
        self._replaced = vars(owner).get(method)  # another capture's, where captures nest
        self._original = getattr(owner, method)
        object.__setattr__(owner, method, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        value = self._original(*args, **kwargs)
        self._keep(value)
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(type(self._owner), self._name).__get__(memo[id(self._owner)])

    def remove(self) -> None:
        if self._replaced is None:
            object.__delattr__(self._owner, self._name)
        else:
            object.__setattr__(self._owner, self._name, self._replaced)


def _in_backward() -> bool:
    """Gradient checkpointing runs a forward again inside the backward: nothing new."""
    return torch._C._current_graph_task_id() != -1
