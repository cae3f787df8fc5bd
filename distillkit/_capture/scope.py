"""Attention and outputs of chosen modules, recorded while the model runs inside a ``with``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

from .._plugins.specs import OperationSpec
from ..errors import CaptureError
from . import operations
from .follow import Follower
from .history import same_source
from .kernels import Shown
from .names import compiled_modules, matching, method_of, named_modules
from .record import Record, Seen
from .sighting import FusedCall, Owner


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

    Under ``torch.compile`` open the capture before the first compiled call, since compiled code
    does not notice hooks that come later. Such a model keeps the hooks, inert between captures: the
    next capture of the same modules goes on with them, and nothing is compiled again.

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
    outputs, returns = tuple(outputs), tuple(returns)
    scope = _kept_on(model, (patterns, outputs, returns, detach))
    if scope is None:
        scope = Scope(model, patterns, outputs=outputs, returns=returns, detach=detach)
    with scope:
        scope.active = True
        yield scope.record
        scope.record.check(scope.compiled)
        scope.record.warn(scope.modules)


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
        keep_outputs: bool = False,
        also: Iterable[OperationSpec] = (),
    ) -> None:
        self._active = False
        self.traced = False  # a compiler has the hooks in its code
        self.key = tuple(patterns), tuple(outputs), tuple(returns), detach
        self.detach, self.with_grad = detach, False
        self.stack: list[str] = []
        self.follower = Follower(self.add, self.notice, self.stack, keep_outputs=keep_outputs)
        readers = operations.readers(also)
        self.mode = _Mode(self, readers, keep_outputs=keep_outputs)
        self.modules = modules = named_modules(model)
        chosen = {n: modules[n] for n in matching(patterns or ["**"], modules, model)}
        wanted = {n: modules[n] for n in matching(outputs, modules, model)}
        methods = [method_of(name, modules, model) for name in returns]
        classes = {name: type(module).__name__ for name, module in chosen.items()}
        self._of_record = classes, tuple(wanted), bool(patterns)
        self.renew()
        self.compiled = compiled_modules(model)
        self._shown = Shown(readers)
        self._handles: list[RemovableHandle | _Wrapped] = []
        start = _Hooks(self, "", model)
        self._handles.append(
            model.register_forward_pre_hook(start.start, prepend=True, with_kwargs=True)
        )
        for name, module in chosen.items():
            hooks = _Hooks(self, name, module)
            self._handles.append(module.register_forward_pre_hook(hooks.enter))
            self._handles.append(module.register_forward_hook(hooks.leave, always_call=True))
        for name, module in wanted.items():
            hooks = _Hooks(self, name, module)
            self._handles.append(module.register_forward_hook(hooks.keep_output))
        for name, owner, method in methods:
            self._handles.append(_Wrapped(owner, method, self, name))
        self._nesting = [
            module
            for module in model.modules()
            if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor
        ]

    @property
    def active(self) -> bool:
        """Whether the hooks record anything."""
        return self._active

    @active.setter
    def active(self, active: bool) -> None:
        if active == self._active:
            return
        self._active = active
        for module in self._nesting:  # nested tensors go past the attention modules, or crash
            module.use_nested_tensor = not active
        if active:
            self._shown.open()
        else:
            self._shown.close()

    def renew(self) -> None:
        """A record for the next capture; the last one is its reader's."""
        classes, outputs, strict = self._of_record
        self.record = Record(classes, outputs, strict=strict)

    def close(self) -> None:
        """Leave nothing on the model."""
        self.active = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self.stack:
            self.stack.clear()
            self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.traced and not self.stack:
            self.active = False
        else:
            self.close()

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward of the whole model begins."""
        self.with_grad = torch.is_grad_enabled()
        self.record.keep_score()
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim > 0]
        self.record.start(frozenset(a.shape[0] for a in given))

    def enter(self, name: str) -> None:
        if torch.compiler.is_compiling():
            self.traced = True
        self.stack.append(name)
        self.record.ran.append(name)
        if len(self.stack) == 1:
            self.follower.begin()
            self.mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        self.stack.pop()
        if not self.stack:
            self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self.follower.forget()

    def add(self, owner: Owner, seen: Seen) -> None:
        """Write down an attention that was seen."""
        if in_backward():
            return
        if self.with_grad and not self.detach and not torch.is_grad_enabled():
            _refuse_reentrant(owner)
            if seen.has_lost_gradient:
                seen.refused = (
                    "it is computed without gradient from tensors that have one (inside an "
                    "autograd.Function or no_grad), so that a loss on it would teach nothing or "
                    "half; tell capture how to read it with an OperationSpec, or detach=True"
                )
        if self.detach or not torch.is_grad_enabled():
            seen.detach()
        self.record.seen.append((owner[-1] if owner else "", seen))

    def blind_to(self, kernel: str) -> None:
        """A foreign kernel ran that may compute attention."""
        self.record.blind.append(self.stack[-1])
        self.notice(tuple(self.stack), operations.cannot_see_into(kernel))

    def notice(self, owner: Owner, reason: str) -> None:
        """Write down why something could not be followed."""
        self.record.notices.append((owner[-1] if owner else "", reason))


def _kept_on(model: nn.Module, key: tuple[Any, ...]) -> Scope | None:
    """The inert scope that a capture of the same modules left on a compiled model."""
    for hook in model._forward_pre_hooks.values():
        hooks = getattr(hook, "__self__", None)
        if isinstance(hooks, _Hooks) and hooks.belongs_to(model):
            scope = hooks.scope
            if scope is not None and scope.traced and not scope.active and scope.key == key:
                scope.renew()
                return scope
    return None


class _Mode(TorchFunctionMode):
    """Shows every torch call to the readers; on only while a chosen module runs."""

    def __init__(self, scope: Scope, readers: dict[Any, Any], *, keep_outputs: bool) -> None:
        super().__init__()
        self._scope, self._readers, self._keep_outputs = scope, readers, keep_outputs
        self._known = {**readers, **operations.OPENED}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._known or type(func) in operations.OPERATORS:
            return self._attend(func, args, kwargs)
        result = func(*args, **kwargs)
        self._scope.follower.saw(func, args, kwargs, result)
        return result

    def _attend(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that may be a whole attention."""
        if func in operations.OPENED:
            with self:
                return operations.OPENED[func](*args, **kwargs)
        result = func(*args, **kwargs)
        scope = self._scope
        read = self._readers.get(func)
        if read is None and type(func) in operations.OPERATORS:
            read = self._readers.get(operations.known_as(func))
            if read is None and operations.may_attend(func, args):
                scope.blind_to(str(func))
        if read is None:
            scope.follower.saw(func, args, kwargs, result)
        else:
            scope.add(tuple(scope.stack), self._call(func, read, args, kwargs, result))
        return result

    def _call(
        self, func: Any, read: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> FusedCall:
        call = FusedCall(read, args, kwargs, result if self._keep_outputs else None)
        given = [a for a in args[:3] if isinstance(a, Tensor)]
        if len(given) == 3:
            # the contract is (b, h, n, d); with other axes, how they were made must tell
            unfold = func is scaled_dot_product_attention and {a.ndim for a in given} != {4}
            if unfold or self._keep_outputs:
                nodes = tuple(self._scope.follower.history.node(a) for a in given)
                call.nodes = nodes if unfold else ()
                call.same_source = same_source(*nodes[:2])
        return call


class _Hooks:
    """What one module calls; a copy of the model has them too, and there they do nothing."""

    def __init__(self, scope: Scope | None, name: str, module: nn.Module | None) -> None:
        self.scope, self._name, self._module = scope, name, module

    def belongs_to(self, module: nn.Module) -> bool:
        """Whether it is the module itself, and no copy of it, that these are on."""
        return module is self._module

    def _of(self, running: nn.Module) -> Scope | None:
        scope = self.scope
        return scope if scope is not None and running is self._module and scope.active else None

    def start(self, running: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        scope = self._of(running)
        if scope is not None and not in_backward():
            scope.start(args, kwargs)

    def enter(self, running: nn.Module, _: object) -> None:
        scope = self._of(running)
        if scope is not None:
            scope.enter(self._name)

    def leave(self, running: nn.Module, _: object, __: object) -> None:
        scope = self._of(running)
        if scope is not None and scope.stack and scope.stack[-1] == self._name:
            scope.leave()

    def keep_output(self, running: nn.Module, _: object, output: object) -> None:
        scope = self._of(running)
        if scope is not None and not in_backward():
            scope.record.add_output(self._name, output)

    def __reduce__(self) -> tuple[type[_Hooks], tuple[None, str, None]]:
        return _Hooks, (None, self._name, None)

    def __deepcopy__(self, _: object) -> _Hooks:
        return _Hooks(None, self._name, None)


class _Wrapped:
    """A bound method that shows what it returns; a deep copy of its owner gets the plain method."""

    def __init__(self, owner: nn.Module, method: str, scope: Scope, name: str) -> None:
        self._owner, self._method, self._scope, self._name = owner, method, scope, name
        self._replaced = vars(owner).get(method)  # another capture's, where captures nest
        self._original = getattr(owner, method)
        object.__setattr__(owner, method, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        value = self._original(*args, **kwargs)
        if self._scope.active:
            self._scope.record.add_returned(self._name, value)
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(type(self._owner), self._method).__get__(memo[id(self._owner)])

    def remove(self) -> None:
        if self._replaced is None:
            object.__delattr__(self._owner, self._method)
        else:
            object.__setattr__(self._owner, self._method, self._replaced)


def in_backward() -> bool:
    """Gradient checkpointing runs a forward again inside the backward: nothing new."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1


def _refuse_reentrant(owner: Owner) -> None:
    """Checkpointing with use_reentrant=True runs without gradient: a loss would teach nothing."""
    if torch.compiler.is_compiling():
        return
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            raise CaptureError(
                f"module {owner[-1]!r} runs inside a checkpoint with use_reentrant=True, which "
                "computes it without gradient: what is captured could teach nothing; checkpoint "
                "with use_reentrant=False, or capture with detach=True"
            )
        frame = frame.f_back  # type: ignore[assignment]
