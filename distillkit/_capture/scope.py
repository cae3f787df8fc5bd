"""Attention and outputs of chosen modules, recorded while the model runs inside a ``with``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from .._attention import Attention
from ..errors import CaptureError, did_you_mean, unknown_name
from . import operations

# how wrappers call what they wrap: not part of the name that the model's author knows
_WRAPPER_SEGMENTS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


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


class Record:
    """What the chosen modules did in the model's last forward."""

    def __init__(self, names: dict[str, str], outputs: Iterable[str], *, strict: bool) -> None:
        self._classes = names
        self._wanted_outputs = tuple(outputs)
        self._strict = strict
        self._ever: set[str] = set()
        self._failures: dict[str, str] = {}
        self.clear()

    def clear(self) -> None:
        """Forget the last forward."""
        self._attentions: dict[str, list[Attention]] = {}
        self._outputs: dict[str, Any] = {}
        self._returned: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The chosen modules; where no pattern chose, those that recorded something."""
        return tuple(self._classes if self._strict else self._attentions)

    def __getitem__(self, name: str) -> Attention:
        """The one attention that the module computed.

        Raises:
            UnknownNameError: no such module was chosen.
            CaptureError: it recorded nothing, or ran several times (see :meth:`calls`).
        """
        calls = self.calls(name)
        if len(calls) > 1:
            raise CaptureError(
                f"{name!r} computed {len(calls)} attentions in one forward; "
                f"record.calls({name!r}) has them in order, and an adapter names one as "
                f'"{name}#1" (the second)'
            )
        return calls[0]

    def calls(self, name: str) -> tuple[Attention, ...]:
        """Every attention that the module computed in the last forward, in order."""
        if name not in self._classes:
            raise unknown_name("captured module", name, self.names)
        found = self._attentions.get(name, [])
        if not found:
            raise CaptureError(self._nothing(name))
        return tuple(found)

    def layers(self, pattern: str) -> tuple[Attention, ...]:
        """The attentions of the modules that match, bottom to top; ``"x.*.att#1"``: 2nd calls."""
        pattern, _, call = pattern.partition("#")
        names = [name for name in self._classes if _regex(pattern).fullmatch(name)]
        if not call:
            return tuple(self[name] for name in names)
        return tuple(self.calls(name)[int(call)] for name in names)

    def outputs(self, pattern: str) -> tuple[Any, ...]:
        """What the modules that match returned, bottom to top."""
        names = [name for name in self._wanted_outputs if _regex(pattern).fullmatch(name)]
        return tuple(self.output(name) for name in names)

    def output(self, name: str) -> Any:
        """What the module named in ``outputs=`` returned."""
        return _recorded("output", name, self._outputs, self._wanted_outputs)

    def returned(self, name: str) -> Any:
        """What the bound method named in ``returns=`` returned."""
        return _recorded("returned value", name, self._returned, self._returned)

    def check(self) -> None:
        """Refuse a capture in which a chosen module never recorded anything."""
        if not self._ever and not self._outputs and not self._returned:
            reasons = [self._nothing(name) for name in self._failures]
            raise CaptureError(
                "; ".join(reasons)
                or "nothing was recorded: the model that was given to capture did not run inside "
                "the `with` block, or no chosen module computes a softmax of query @ key^T in "
                f"Python (chosen: {_some(self._classes)})"
            )
        missing = [name for name in self._classes if name not in self._ever]
        if self._strict and missing:
            raise CaptureError(self._nothing(missing[0]))

    def add(self, name: str, attention: Attention) -> None:
        self._ever.add(name)
        self._attentions.setdefault(name, []).append(attention)

    def add_output(self, name: str, value: Any) -> None:
        self._outputs[name] = value

    def add_returned(self, name: str, value: Any) -> None:
        self._returned[name] = value

    def add_failure(self, name: str, reason: str) -> None:
        self._failures[name] = reason

    def _nothing(self, name: str) -> str:
        why = self._failures.get(
            name,
            "it did not run, or it computes no scaled_dot_product_attention and no softmax of "
            "query @ key^T of its own (is the attention in a child or parent module?)",
        )
        return f"module {name!r} ({self._classes[name]}) was chosen but recorded no attention: {why}"


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
        methods = [_owner_of(name, modules, model) for name in returns]
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

    def __enter__(self) -> Scope:
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
        types: object,  # noqa: ARG002 (the protocol's own parameter)
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
        self._original = getattr(owner, method)
        object.__setattr__(owner, method, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        value = self._original(*args, **kwargs)
        self._keep(value)
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(type(self._owner), self._name).__get__(memo[id(self._owner)])

    def remove(self) -> None:
        object.__delattr__(self._owner, self._name)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by the name that its author knows: what wrappers insert is left out."""
    named: dict[str, nn.Module] = {}
    wrappers: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            wrappers.add(f"{name}.module".lstrip("."))
        named[_plain(name, wrappers)] = module
    return named


def matching(patterns: Iterable[str], names: Iterable[str], model: nn.Module) -> list[str]:
    """The names that match a pattern, in the order of the patterns, then of the model.

    Raises:
        CaptureError: a pattern that matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name in names if _regex(pattern).fullmatch(name)]
        if not matched:
            raise CaptureError(
                f"pattern {pattern!r} matches no module of {type(model).__name__}; "
                f"{did_you_mean(pattern, filter(None, names))}"
            )
        found.update(dict.fromkeys(matched))
    return list(found)


def _regex(pattern: str) -> re.Pattern[str]:
    if pattern == "**":
        return re.compile(".*")
    parts = []
    for segment in pattern.split("."):
        any_number = r"(?:[^.]+\.)*"
        one = re.escape(segment).replace(r"\*", "[^.]*") + r"\."
        parts.append(any_number if segment == "**" else one)
    if pattern.endswith(".**"):
        parts.append(r"[^.]+\.")
    return re.compile("".join(parts).removesuffix(r"\."))


def _plain(name: str, wrappers: set[str]) -> str:
    segments = name.split(".")
    kept = [
        segment
        for i, segment in enumerate(segments)
        if segment not in _WRAPPER_SEGMENTS and ".".join(segments[: i + 1]) not in wrappers
    ]
    return ".".join(kept)


def _owner_of(
    name: str, modules: dict[str, nn.Module], model: nn.Module
) -> tuple[str, nn.Module, str]:
    """The module and the method that ``"embeddings.visual_embed"`` names."""
    owner, _, method = name.rpartition(".")
    if owner not in modules or not callable(getattr(modules[owner], method, None)):
        raise CaptureError(
            f"{name!r} is no method of a module of {type(model).__name__}; "
            f"{did_you_mean(owner, filter(None, modules))}"
        )
    return name, modules[owner], method


def _recorded(what: str, name: str, found: dict[str, Any], wanted: Iterable[str]) -> Any:
    if name in found:
        return found[name]
    if name not in wanted:
        raise unknown_name(f"captured {what}", name, wanted)
    raise CaptureError(f"the {what} of {name!r} was not recorded: it did not run in this forward")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(repr(name) for name in listed[:5])
    return shown if len(listed) <= 5 else f"{shown} and {len(listed) - 5} more"


def _in_backward() -> bool:
    """Gradient checkpointing runs a forward again inside the backward: nothing new."""
    return torch._C._current_graph_task_id() != -1
