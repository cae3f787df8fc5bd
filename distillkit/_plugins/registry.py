"""What plugins provide, by name; nothing of what they name is imported."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TypeVar

from ..errors import PluginConflictError, unknown_name
from .loading import canonical, plugins
from .specs import SPEC_TYPES, Spec

S = TypeVar("S", bound=Spec)

_OWN = "register"  # what this process registered is found as "register:<name>"
_lock = threading.Lock()
_registered: tuple[Spec, ...] = ()


def provided(spec_type: type[S]) -> dict[str, dict[str, S]]:
    """Everything of one kind: name -> plugin that provides it -> spec. Imports no target."""
    found: dict[str, dict[str, S]] = {}
    everything = [(p.source.name, p.specs) for p in plugins()] + [(_OWN, _registered)]
    for owner, specs in everything:
        for spec in specs:
            if isinstance(spec, spec_type):
                found.setdefault(spec.name, {})[owner] = spec
    return dict(sorted(found.items()))


def lookup(spec_type: type[S], name: str) -> S:
    """The spec called ``name``; ``"distribution:name"`` picks one of several.

    Where one distribution has several plugins, ``"distribution:plugin:name"`` picks one of them.

    Raises:
        UnknownNameError: nobody provides it; the nearest names are suggested.
        PluginConflictError: several plugins do, and the name does not say which.
    """
    known = provided(spec_type)
    qualifier, _, bare = name.rpartition(":")
    owners = known.get(bare, {})
    if qualifier in owners:
        return owners[qualifier]
    if qualifier:
        owners = {o: s for o, s in owners.items() if distribution_of(o) == canonical(qualifier)}
    if not owners:
        names = [full for each in known for full in _qualified(each, known[each])]
        unknown = unknown_name(spec_type.kind, name, [*known, *names] if qualifier else known)
        raise type(unknown)(f"{unknown}{_left_out()}")
    if len(owners) > 1:
        choices = " or ".join(f'"{full}"' for full in _qualified(bare, owners))
        raise PluginConflictError(
            f"{spec_type.kind} {name!r} is provided by several plugins; write {choices}"
        )
    return next(iter(owners.values()))


def owner_labels(owners: Iterable[str]) -> dict[str, str]:
    """Plugin -> what to call it: its distribution, or its whole name where that is not enough."""
    owners = list(owners)
    distributions = [distribution_of(owner) for owner in owners]
    return {
        owner: owner if distributions.count(distribution) > 1 else distribution
        for owner, distribution in zip(owners, distributions, strict=True)
    }


def distribution_of(owner: str) -> str:
    """The distribution of a plugin called ``"distribution:entry point"``."""
    return owner.partition(":")[0]


def register(spec: Spec) -> None:
    """Make a loss, an adapter or another thing known to this process by its name.

    Registering the same name again replaces what this process registered before, so that a
    notebook cell may run twice; it never hides what a plugin provides: the bare name is then a
    :class:`PluginConflictError`, and ``"register:<name>"`` is the one of this process.

    Raises:
        TypeError: not a spec.

    Examples:
        >>> import distillkit as dk
        >>> def halved_l1(student, teacher):
        ...     return (student - teacher).abs().sum(-1) / 2
        >>> dk.register(dk.LossSpec("halved_l1", halved_l1, signature="(d),(d)->()"))
    """
    global _registered  # a tuple, swapped whole: readers need no lock
    if not isinstance(spec, SPEC_TYPES):
        names = ", ".join(spec_type.__name__ for spec_type in SPEC_TYPES)
        raise TypeError(f"register takes one of {names}; got {type(spec).__name__}")
    with _lock:
        others = [kept for kept in _registered if _identity(kept) != _identity(spec)]
        _registered = (*others, spec)


def _left_out() -> str:
    """The end of a message about an unknown name: what may have provided it."""
    broken = [plugin.source.name for plugin in plugins() if plugin.state == "broken"]
    if not broken:
        return ""
    names = ", ".join(map(repr, broken))
    return f" (left out: {names}; `python -m distillkit plugins` says why)"


def _qualified(name: str, owners: Iterable[str]) -> list[str]:
    return [f"{label}:{name}" for label in owner_labels(owners).values()]


def _identity(spec: Spec) -> tuple[type, str]:
    return type(spec), spec.name
