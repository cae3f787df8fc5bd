"""Find what plugins provide, by name, importing none of it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TypeVar, get_args

import pluggy

from ..errors import PluginConflictError, unknown_name
from . import builtins, hookspecs
from .specs import AdapterSpec, AlignerSpec, LossSpec, OperationSpec, RecipeSpec, Spec

S = TypeVar("S", LossSpec, AdapterSpec, AlignerSpec, RecipeSpec, OperationSpec)


class _Registered:
    """The plugin of this process: it provides what ``register`` was given."""

    def __init__(self) -> None:
        self.specs: list[Spec] = []

    def _of(self, spec_type: type[S]) -> list[S]:
        return [spec for spec in self.specs if isinstance(spec, spec_type)]

    @hookspecs.hookimpl
    def distillkit_losses(self) -> list[LossSpec]:
        return self._of(LossSpec)

    @hookspecs.hookimpl
    def distillkit_adapters(self) -> list[AdapterSpec]:
        return self._of(AdapterSpec)

    @hookspecs.hookimpl
    def distillkit_aligners(self) -> list[AlignerSpec]:
        return self._of(AlignerSpec)

    @hookspecs.hookimpl
    def distillkit_recipes(self) -> list[RecipeSpec]:
        return self._of(RecipeSpec)

    @hookspecs.hookimpl
    def distillkit_operations(self) -> list[OperationSpec]:
        return self._of(OperationSpec)


_REGISTERED = _Registered()


@functools.cache
def plugin_manager() -> pluggy.PluginManager:
    """The process-wide manager: the core's own specs, then what this process registered."""
    manager = pluggy.PluginManager("distillkit")
    manager.add_hookspecs(hookspecs)
    manager.register(builtins, name="distillkit")
    manager.register(_REGISTERED, name="register")
    return manager


def provided(spec_type: type[S]) -> dict[str, dict[str, S]]:
    """Everything of one kind: name -> plugin that provides it -> spec. Imports no target."""
    found: dict[str, dict[str, S]] = {}
    hook: pluggy.HookCaller = getattr(plugin_manager().hook, spec_type.hook)
    for implementation in sorted(hook.get_hookimpls(), key=lambda one: one.plugin_name):
        specs: Iterable[S] = implementation.function()  # type: ignore[assignment]
        for spec in specs:
            found.setdefault(spec.name, {})[implementation.plugin_name] = spec
    return dict(sorted(found.items()))


def lookup(spec_type: type[S], name: str) -> S:
    """The spec called ``name``; ``"plugin:name"`` picks one of several.

    Raises:
        UnknownNameError: nobody provides it; the nearest names are suggested.
        PluginConflictError: several plugins do, and the name does not say which.
    """
    known = provided(spec_type)
    plugin, _, bare = name.rpartition(":")
    if plugin in known.get(bare, {}):
        return known[bare][plugin]
    if name not in known:
        raise unknown_name(spec_type.kind, name, known)
    if len(known[name]) > 1:
        qualified = " or ".join(f'"{owner}:{name}"' for owner in known[name])
        raise PluginConflictError(
            f"{spec_type.kind} {name!r} is provided by several plugins; write {qualified}"
        )
    return next(iter(known[name].values()))


def register(spec: Spec) -> None:
    """Make a loss, adapter, aligner, recipe or operation known to this process by its name.

    Registering the same name again replaces what this process registered before, so that a
    notebook cell may run twice; it never hides what a plugin provides.

    Raises:
        TypeError: not a spec.

    Examples:
        >>> import distillkit as dk
        >>> def halved_l1(student, teacher):
        ...     return (student - teacher).abs().sum(-1) / 2
        >>> dk.register(dk.LossSpec("halved_l1", halved_l1, signature="(d),(d)->()"))
    """
    if not isinstance(spec, get_args(Spec)):
        names = ", ".join(spec_type.__name__ for spec_type in get_args(Spec))
        raise TypeError(f"register takes one of {names}; got {type(spec).__name__}")
    others = [kept for kept in _REGISTERED.specs if _identity(kept) != _identity(spec)]
    _REGISTERED.specs = [*others, spec]


def _identity(spec: Spec) -> tuple[type, str]:
    return type(spec), spec.name
