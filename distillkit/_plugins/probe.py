"""One plugin in a fresh interpreter: does listing it stay light, does all that it names exist?

``python -m distillkit._plugins.probe acme_distill.plugin`` prints what was seen, for
``distillkit.testing.check_plugin``: nothing may be imported here that a listing does not import.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import DistillKitError, PluginLoadWarning
from .loading import Plugin, Source, installed, load, plugins
from .registry import distribution_of
from .specs import (
    AdapterSpec,
    LossSpec,
    OperationSpec,
    RecipeSpec,
    Spec,
    WeightingSpec,
    check_target,
    references,
    resolve,
    resource_file,
)

HEAVY = ("torch", "transformers", "numpy", "pydantic")
MARK = "distillkit-probe:"

Seen = tuple[str, bool, str]  # check, passed, what was seen


class _Watch:
    """A finder that finds nothing, but remembers which line imported a heavy package first."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        del path, target
        if name in HEAVY and name not in self.places:
            frames = [
                frame
                for frame in traceback.extract_stack()[:-1]
                if not frame.filename.startswith("<frozen")
            ]
            self.places[name] = f"{frames[-1].filename}, line {frames[-1].lineno}"


def seen_of(module: str) -> Iterator[Seen]:
    """What loading the plugin shows, then one line for everything that it names."""
    watch = _Watch()
    sys.meta_path.insert(0, watch)
    brought = [source for source in installed() if module in (source.target, source.name)]
    source = brought[0] if brought else Source(module, module)
    plugin = load(source)
    yield "loads", plugin.state == "loaded", plugin.problem or _named(plugin)
    yield _lightness(watch.places)
    sys.meta_path.remove(watch)
    if not brought:  # then it takes part in what is found by name, beside what is installed
        names = [one.name for one in installed()]
        os.environ["DISTILLKIT_PLUGINS"] = ",".join([*names, module])
    if plugin.state == "loaded":
        yield _uniqueness(plugin)
    for spec in plugin.specs:
        yield _reference(spec, source.name)


def _named(plugin: Plugin) -> str:
    return ", ".join(f"{spec.kind} {spec.name!r}" for spec in plugin.specs) or "it provides nothing"


def _lightness(places: dict[str, str]) -> Seen:
    if not places:
        return "light", True, f"listing it imports none of {', '.join(HEAVY)}"
    package, place = next(iter(places.items()))
    seen = (
        f"listing it imports {package} ({place}); name what needs it in a spec, "
        '"package.module:attribute", so that it is imported when it is used'
    )
    return "light", False, seen


def _uniqueness(plugin: Plugin) -> Seen:
    """Whether every bare name can be asked for, next to all that is installed here."""
    mine = {(type(spec), spec.name): spec for spec in plugin.specs}
    for other in plugins():
        for spec in other.specs:
            if other.source.name != plugin.source.name and (type(spec), spec.name) in mine:
                seen = (
                    f"{spec.kind} {spec.name!r} is provided by "
                    f"{distribution_of(other.source.name)} too: asking for it by name is an error "
                    "wherever both are installed"
                )
                return "names", False, seen
    return "names", True, "nothing else that is installed provides one of its names"


def _reference(spec: Spec, plugin: str) -> Seen:
    name = f"{spec.kind} {spec.name}"
    try:
        if isinstance(spec, RecipeSpec):
            return name, True, _recipe(f"{plugin}:{spec.name}")
        if isinstance(spec, AdapterSpec) and spec.factory is None:
            return name, True, _adapter_file(spec)
        found = {field: resolve(given) for field, given in references(spec).items()}
        _check_callable(found)
        if isinstance(spec, OperationSpec):
            check_target(spec, found["target"])
        if isinstance(spec, LossSpec):
            inputs = spec.signature.partition("->")[0].count("(") or 2  # "attention": two of them
            _check_positional(found["function"], inputs)
        if isinstance(spec, (AdapterSpec, WeightingSpec)):  # one with a factory
            _check_positional(found["factory"], 1)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a stranger's module raises is what was seen
        own = isinstance(error, DistillKitError)
        return name, False, str(error) if own else f"{type(error).__name__}: {error}"
    return name, True, ", ".join(map(str, references(spec).values()))


def _recipe(name: str) -> str:
    recipe = resolve("distillkit._objective.recipe:load_recipe")(name)
    terms = recipe.build().terms
    return f"a recipe of {len(terms)} {'term' if len(terms) == 1 else 'terms'}"


def _adapter_file(spec: AdapterSpec) -> str:
    read = resolve("distillkit._backbone.declarative:DeclarativeAdapter.from_toml")
    streams = read(resource_file(spec)).streams
    return f"{spec.resource}, an adapter with the streams {', '.join(streams)}"


def _check_callable(found: dict[str, Any]) -> None:
    for field, one in found.items():
        if not callable(one):
            raise TypeError(f"{field} names {one!r}, which cannot be called")


def _check_positional(function: Callable[..., Any], count: int) -> None:
    """Refuse a function that cannot be called with that many tensors; options are by keyword."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, without a signature
        return
    taken = [
        p
        for p in signature.parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    if not variadic and len(taken) != count:
        raise TypeError(
            f"{getattr(function, '__name__', function)}{signature} is called with {count} "
            f"positional argument{'' if count == 1 else 's'}; options are keyword-only"
        )


def main() -> None:
    """Print what was seen of the plugin that the command line names, on one marked line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginLoadWarning)  # of other plugins
        seen = list(seen_of(sys.argv[1]))
    sys.stdout.write(f"\n{MARK}{json.dumps(seen)}\n")


if __name__ == "__main__":
    main()
