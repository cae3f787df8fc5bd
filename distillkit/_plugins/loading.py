"""Load plugins, each whole or not at all: a bad one is one warning and hides no other."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

import pluggy

from .._version import installed_version
from ..errors import DistillKitError, PluginLoadWarning, SpecError, unknown_name
from . import builtins, hookspecs
from .specs import SPEC_TYPES, Spec

CORE = "distillkit"
GROUP = "distillkit"

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d][\w.]*)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a plugin is found, before any of it is imported.

    Attributes:
        name: ``"<distribution>:<entry point>"``; a module's path where no distribution brings it.
        target: the module, ``"acme_distill.plugin"``, or an object in it, ``"module:object"``.
        version: the distribution's.
    """

    name: str
    target: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin after the attempt to load it.

    Attributes:
        source: where it was found.
        specs: everything that it provides.
        state: ``"off"`` where ``DISTILLKIT_PLUGINS`` leaves it out.
        problem: why it is not loaded.
    """

    source: Source
    specs: tuple[Spec, ...] = ()
    state: Literal["loaded", "broken", "off"] = "loaded"
    problem: str = ""


class _Catalogue:
    """The plugins of this process, loaded once, whichever thread asks first."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loading = False
        self._plugins: tuple[Plugin, ...] | None = None

    def plugins(self) -> tuple[Plugin, ...]:
        with self._lock:
            if self._plugins is None:
                self._plugins = self._load()
                # after they are kept: where warnings are errors, the next call has them all
                for plugin in self._plugins:
                    if plugin.state == "broken":
                        message = f"plugin {plugin.source.name!r} was left out: {plugin.problem}"
                        warnings.warn(message, PluginLoadWarning, stacklevel=3)
            return self._plugins

    def _load(self) -> tuple[Plugin, ...]:
        if self._loading:
            raise DistillKitError(
                "a plugin asks for what plugins provide while it is imported; ask in a function "
                "that is called later"
            )
        self._loading = True
        try:
            return tuple(_all_plugins())
        finally:
            self._loading = False


_CATALOGUE = _Catalogue()


def plugins() -> tuple[Plugin, ...]:
    """The core, then every installed plugin by name; the first call imports their modules.

    Raises:
        UnknownNameError: ``DISTILLKIT_PLUGINS`` names a plugin that is not there.
    """
    return _CATALOGUE.plugins()


def installed() -> list[Source]:
    """The plugins of every distribution, from its metadata alone, sorted by name."""
    found = [
        Source(f"{name}:{point.name}", point.value, version)
        for point in entry_points(group=GROUP)
        for name, version in [_name_and_version(point.dist)]
    ]
    return sorted(found, key=lambda source: (source.name, source.target))


def load(source: Source) -> Plugin:
    """Import a plugin's module, call its hooks and check what they return."""
    try:
        plugin = _imported(source)
        _check_api(plugin)
        return Plugin(source, tuple(_provided_by(plugin, source.name)))
    except KeyboardInterrupt:
        raise  # the person at the keyboard means the process, not the plugin
    except BaseException as error:  # a plugin that calls sys.exit is broken like any other
        return Plugin(source, state="broken", problem=_reason(error))


def canonical(distribution: str) -> str:
    """A distribution's name as package indexes compare it: ``Acme_Distill`` is acme-distill."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _all_plugins() -> Iterator[Plugin]:
    yield Plugin(Source(CORE, "", installed_version()), tuple(_provided_by(builtins, CORE)))
    found = installed()
    chosen = _chosen(found)
    loaded: dict[str, str] = {}  # target -> name; one module, and one name, is one plugin
    for source in found + [source for source in chosen if source not in found]:
        if source not in chosen:
            yield Plugin(source, state="off", problem="DISTILLKIT_PLUGINS does not name it")
        elif source.target in loaded:
            problem = f"its module {source.target!r} is loaded as {loaded[source.target]!r} already"
            yield Plugin(source, state="broken", problem=problem)
        elif source.name in loaded.values():
            yield Plugin(source, state="broken", problem="another plugin has its name")
        else:
            loaded[source.target] = source.name
            yield load(source)


def _chosen(found: list[Source]) -> list[Source]:
    """What ``DISTILLKIT_PLUGINS`` names; everything where it is not set."""
    setting = os.environ.get("DISTILLKIT_PLUGINS")
    if setting is None:
        return found
    chosen: list[Source] = []
    for item in filter(None, map(str.strip, setting.split(","))):
        named = [s for s in found if item == s.name or canonical(item) == s.name.partition(":")[0]]
        if not named and item != CORE:
            named = [_unpackaged(item, found)]
        chosen += [source for source in named if source not in chosen]
    return chosen


def _unpackaged(module: str, found: list[Source]) -> Source:
    """A module that no distribution brings, named by its path."""
    if not _exists(module):
        names = {source.name for source in found}
        known = names | {name.partition(":")[0] for name in names}
        raise unknown_name("plugin or module (in DISTILLKIT_PLUGINS)", module, known)
    return Source(module, module)


def _exists(module: str) -> bool:
    if not _MODULE.fullmatch(module):
        return False
    path = module.partition(":")[0]
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError as error:  # of a package above it, or of what that one needs
        return not f"{path}.".startswith(f"{error.name}.")
    except (Exception, SystemExit):  # there, and broken: loading it says how
        return True


def _name_and_version(distribution: Distribution | None) -> tuple[str, str]:
    try:
        assert distribution is not None
        return canonical(distribution.name), distribution.version
    except Exception:  # metadata that is damaged or gone must not hide the others
        return "unknown", ""


def _imported(source: Source) -> Any:
    started = time.perf_counter()
    try:
        if not _MODULE.fullmatch(source.target):
            raise SpecError(f'an entry point is "package.module"; got {source.target!r}')
        return EntryPoint(source.name, source.target, GROUP).load()
    finally:
        _trace(source.name, f"import {source.target}", started)


def _check_api(plugin: Any) -> None:
    api = getattr(plugin, "DISTILLKIT_API", hookspecs.API)
    if type(api) is not int or api < 1:
        raise SpecError(f"DISTILLKIT_API is a whole number from 1 up; got {api!r}")
    if api > hookspecs.API:
        raise SpecError(
            f"it is written for plugin API {api}, and distillkit {installed_version()} has "
            f"{hookspecs.API}: upgrade distillkit, or install an older release of the plugin"
        )


def _provided_by(plugin: Any, name: str) -> Iterator[Spec]:
    """The checked specs of all of a plugin's hooks."""
    manager = pluggy.PluginManager("distillkit")  # its own: a bad one leaves nothing behind
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name)
    callers = {caller.name: caller for caller in manager.get_hookcallers(plugin) or ()}
    types = {spec_type.hook: spec_type for spec_type in SPEC_TYPES}
    _check_hooks(plugin, callers, types)
    seen: set[tuple[type, str]] = set()
    for hook in filter(types.__contains__, sorted(callers)):
        for implementation in callers[hook].get_hookimpls():
            for spec in _returned(types[hook], implementation, name):
                if (type(spec), spec.name) in seen:
                    raise SpecError(f"{hook} provides {spec.name!r} twice")
                seen.add((type(spec), spec.name))
                yield spec


def _check_hooks(
    plugin: Any, callers: Mapping[str, pluggy.HookCaller], known: Iterable[str]
) -> None:
    """Refuse hooks that nobody would ever call."""
    implementations = [(h, one) for h, caller in callers.items() for one in caller.get_hookimpls()]
    for hook, implementation in implementations:
        if hook not in known and not implementation.optionalhook:
            raise unknown_name("hook", hook, known)
        if implementation.wrapper or implementation.hookwrapper:
            raise SpecError(f"{hook} is a wrapper; hooks only provide, and are never wrapped")
    for hook in known:
        if hook not in callers and inspect.getattr_static(plugin, hook, None) is not None:
            raise SpecError(f"{hook} is not marked: write @hookimpl above it")
    if not callers:
        raise SpecError(f"it has none of the hooks {', '.join(known)}")


def _returned(spec_type: type[Spec], implementation: pluggy.HookImpl, name: str) -> list[Spec]:
    hook, wanted, started = spec_type.hook, spec_type.__name__, time.perf_counter()
    try:
        given: Any = implementation.function()
        if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
            raise SpecError(f"{hook} returns a list of {wanted}; got {_a(given)}")
        specs = list(given)
    finally:
        _trace(name, f"{hook}()", started)
    for spec in specs:
        if not isinstance(spec, spec_type):
            other = f"; {_a(spec)} comes from {spec.hook}" if isinstance(spec, SPEC_TYPES) else ""
            raise SpecError(f"{hook} returns a list of {wanted}; it holds {_a(spec)}{other}")
    return specs


def _a(value: Any) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0] in "AEIOUaeiou" else f"a {name}"


def _reason(error: BaseException) -> str:
    """What went wrong in one line, and where in the plugin."""
    own = isinstance(error, DistillKitError)
    said = str(error) if own else f"{type(error).__name__}: {error}"
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == CORE:
        said += f" (does it need a newer distillkit than {installed_version()}?)"
    here = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((here, "<", importlib.__path__[0]))
        and "pluggy" not in Path(frame.filename).parts
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return " ".join(f"{said}{place}".split())


def _trace(name: str, what: str, started: float) -> None:
    if os.environ.get("DISTILLKIT_TRACE", "") not in ("", "0"):
        milliseconds = (time.perf_counter() - started) * 1000
        sys.stderr.write(f"distillkit: {name}: {what}, {milliseconds:.1f} ms\n")
