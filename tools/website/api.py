"""The pages of the API reference: tables of each module, and its objects by topic.

The names are those of ``tests/public_api.txt``, found by the same code, and those of the plugins.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from types import ModuleType

from tools import public_api

PLUGINS = ("distillkit_transformers", "distillkit_lightning")
MODULES = (*public_api.MODULES, "distillkit.plot", *PLUGINS)
# A module of many names has a page for each topic: its file and title, by where the names are
# written. The order here is that of the site.
TOPICS = {
    "distillkit": {
        "distiller": ("Distiller, recipes and terms", ("_objective",)),
        "backbones": ("Backbones, adapters and signals", ("_backbone",)),
        "attention": ("Attention and capture", ("_attention", "_capture")),
        "cache": ("The teacher's signals on disk", ("_cache",)),
        "view": ("Look at what is distilled", ("_view", "_report")),
        "plugins": ("Plugins", ("_plugins",)),
    },
    "distillkit.losses": {
        "divergences": ("Divergences of logits", ("_divergence", "_target")),
        "large-vocabularies": (
            "Divergences of large vocabularies", ("_linear", "_top_k", "_dynamic_top_k"),
        ),
        "attention": ("Attention", ("_attention",)),
        "features": ("Vectors and feature maps", ("_feature",)),
        "relations": ("Relations, correlations and rankings", (
            "_relation", "_correlation", "_ranking",
        )),
        "contrastive": ("Contrastive losses", ("_contrastive",)),
        "around": ("Around a loss", ("_reduce", "_signature", "_gathering", "_citation")),
    },
    "distillkit.testing": {
        "losses": ("Losses", ("conformance", "subject", "results")),
        "inputs": ("Inputs of losses", ("strategies",)),
        "adapters": ("Adapters and aligners", ("adapters", "aligners")),
        "others": ("Distillers, plugins, kernels and weightings", (
            "lifecycle", "plugins", "operations", "weightings",
        )),
    },
}  # fmt: skip
# what is neither a class nor a function has no docstring of its own
CONSTANTS = {
    "hookimpl": "Marks a function of a plugin as one that distillkit calls.",
    "CHECKS": "Every check of losses, in the order of their results.",
    "TAGS": "Every property that a :class:`~distillkit.LossSpec` may promise.",
}


def names_of(module: ModuleType) -> list[str]:
    """The public names of a module, but for modules, which have tables of their own."""
    names = getattr(module, "__all__", None)
    if names is None:
        own = vars(module).items()
        names = [name for name, value in own if public_api.is_own(name, value, module)]
    return sorted(n for n in names if not inspect.ismodule(getattr(module, n)))


def topic_of(module: ModuleType, name: str) -> str:
    """The topic that a name belongs to; empty for a module that has one page.

    Raises:
        ValueError: no topic of the module says where the name is written.
    """
    topics = TOPICS.get(module.__name__)
    if topics is None:
        return ""
    homes_of = getattr(module, "_HOMES", {})
    home = homes_of.get(name) or getattr(module, name).__module__
    home = home.removeprefix(f"{module.__name__}.").split(".")[0]
    for topic, (_, homes) in topics.items():
        if home in homes:
            return topic
    raise ValueError(
        f"no topic of {module.__name__} has its module {home!r}, where {name} is written: add it to "
        "TOPICS in tools/website/api.py"
    )


def by_topic(module: ModuleType) -> dict[str, list[str]]:
    """The names of each topic, in the order of the topics."""
    names = names_of(module)
    order = list(TOPICS.get(module.__name__, [""]))
    found: dict[str, list[str]] = {topic: [] for topic in order}
    for name in names:
        found[topic_of(module, name)].append(name)
    return found


def pages(modules: Iterable[str] = MODULES) -> Iterator[tuple[PurePosixPath, str]]:
    """Every page of some modules, with its text."""
    folder = PurePosixPath("api")
    yield folder / "index.md", index(modules)
    for name in modules:
        module = importlib.import_module(name)
        yield folder / f"{name}.rst", module_page(module)
        if name in TOPICS:
            for topic, names in by_topic(module).items():
                yield folder / f"{name}.{topic}.rst", topic_page(module, topic, names)


def index(modules: Iterable[str]) -> str:
    """The list of the modules."""
    lines = [
        "# API", "",
        ("Every public name, from its docstring. What is not here is private and may change; "
        "[what stays, and what may change](../explanation/stability.md) has the rules."), "",
    ]  # fmt: skip
    for name in modules:
        module = importlib.import_module(name)
        lines.append(f"- [`{name}`]({name}.rst): {first_line(module)}")
    lines += ["", "```{toctree}", ":hidden:", "", *modules, "```", ""]
    return "\n".join(lines)


def first_line(value: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(value) or "").partition("\n")[0]


def module_page(module: ModuleType) -> str:
    """A table of a module's names, by topic; a module without topics has its objects here."""
    name = module.__name__
    lines = [*title(name), f".. py:module:: {name}", "", inspect.getdoc(module) or "", ""]
    found = by_topic(module)
    if name not in TOPICS:
        names = found[""]
        return "\n".join([*lines, *table(module, names), *objects(module, names)])
    for topic, names in found.items():
        lines += [*title(TOPICS[name][topic][0], "-"), *table(module, names)]
    lines += [".. toctree::", "   :hidden:", "", *(f"   {name}.{topic}" for topic in found), ""]
    return "\n".join(lines)


def topic_page(module: ModuleType, topic: str, names: list[str]) -> str:
    """The objects of one topic."""
    heading = TOPICS[module.__name__][topic][0]
    lines = [*title(heading), f"Of :py:mod:`{module.__name__}`.", ""]
    return "\n".join([*lines, *objects(module, names)])


def table(module: ModuleType, names: Iterable[str]) -> list[str]:
    """A row for each name: a link and the first line of its docstring."""
    lines = [".. list-table::", "   :widths: 38 62", "   :class: api-table", ""]
    for one in names:
        value = getattr(module, one)
        summary = CONSTANTS.get(one) or first_line(value)
        lines += [f"   * - :py:obj:`~{module.__name__}.{one}`", f"     - {summary}"]
    return [*lines, ""]


def title(text: str, line: str = "=") -> list[str]:
    """A heading of reStructuredText."""
    return [text, line * len(text), ""]


def objects(module: ModuleType, names: Iterable[str]) -> Iterator[str]:
    """The directives of public names, which Sphinx fills from their docstrings."""
    yield from (f".. currentmodule:: {module.__name__}", "")
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value):
            yield from (f".. autoclass:: {name}", "   :show-inheritance:", "")
            yield from (f"   {line}" for line in member_lines(value))
        elif inspect.isroutine(value):
            yield from (f".. autofunction:: {name}", "")
        else:
            yield from (f".. py:data:: {name}", f"   :type: {type(value).__name__}", "")
            yield from (f"   {CONSTANTS[name]}", "")
            if isinstance(value, tuple):
                shown = ", ".join(f"``{getattr(one, 'name', one)}``" for one in value)
                yield from (f"   {shown}", "")


def member_lines(cls: type) -> Iterator[str]:
    """A directive for each public member: fields that the constructor takes are described there."""
    constructor = public_api.constructor_of(cls)
    taken = constructor.parameters if constructor else {}
    for name, value, _ in public_api.members_of(cls):
        function = public_api.function_of(value)
        if name in taken or (name.startswith("__") and not getattr(function, "__doc__", "")):
            continue
        kind = "attribute" if function is None else "method"
        if isinstance(value, property) or type(value).__name__ == "cached_property":
            kind = "property"
        yield from (f".. auto{kind}:: {name}", "")
