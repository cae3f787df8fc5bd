"""List the public API: names, signatures, defaults and annotations, one readable text.

    python -m tools.public_api --write

Annotations are as they are written in the code, defaults are values. What a dataclass or a model
of pydantic holds is in its constructor; what it inherits from a class of another library is not
listed.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import ForwardRef

from pydantic import BaseModel

OWN = ("distillkit", "distillkit_transformers", "distillkit_lightning")  # import packages
INVENTORY = Path(__file__).parents[1] / "tests" / "public_api.txt"
MODULES = ("distillkit", "distillkit.errors", "distillkit.losses", "distillkit.testing")
WIDTH = 100
HEAD = """The public API of distillkit. A change of it is a change of this file:

    python -m tools.public_api --write"""
# called by python while an object is made, never by a user
OF_THE_CONSTRUCTOR = {"__init__", "__new__", "__post_init__", "__init_subclass__"}


def inventory() -> str:
    """The whole text."""
    sections = []
    for name in MODULES:
        lines = [line for entry in entries_of(importlib.import_module(name)) for line in entry]
        sections.append("\n".join([name, "=" * len(name), *lines]))
    return "\n\n\n".join([HEAD, *sections]) + "\n"


def entries_of(module: ModuleType) -> Iterator[list[str]]:
    """The lines of each public name of a module, an empty one first."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, value in vars(module).items() if is_own(name, value, module)]
    for name in sorted(names):
        yield ["", *describe(name, getattr(module, name))]


def is_own(name: str, value: object, module: ModuleType) -> bool:
    """Whether a module without ``__all__`` defines and publishes a name."""
    return not name.startswith("_") and getattr(value, "__module__", "") == module.__name__


def describe(name: str, value: object) -> list[str]:
    """The lines of one public name."""
    if isinstance(value, ModuleType):
        return [f"module {value.__name__}"]
    if inspect.isclass(value):
        return describe_class(name, value)
    if inspect.isfunction(value):
        return call(f"def {name}", inspect.signature(value))
    if isinstance(value, tuple) and all(isinstance(one, str) for one in value):
        return [f"{name}: tuple of", *(f"    {one!r}" for one in value)]
    return [f"{name}: {type(value).__name__}"]


def describe_class(name: str, cls: type) -> list[str]:
    """Its bases, its constructor and its members."""
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    head = f"class {name}({bases})" if bases else f"class {name}"
    constructor = constructor_of(cls)
    lines = call(head + ": " + name, constructor) if constructor else [head]
    taken = constructor.parameters if constructor else {}
    for member, value, annotation in members_of(cls):
        if member not in taken:
            lines += [f"    {line}" for line in describe_member(member, value, annotation)]
    return lines


def constructor_of(cls: type) -> inspect.Signature | None:
    """How a class is called, where it says so itself."""
    if issubclass(cls, BaseModel):
        return inspect.Signature([field_of(cls, name) for name in cls.model_fields])
    if getattr(cls, "_is_protocol", False) or issubclass(cls, BaseException):
        return None
    try:
        signature = inspect.signature(cls)
    except ValueError:  # made by a class of C, which says nothing
        return None
    return signature.replace(return_annotation=inspect.Signature.empty)


def field_of(model: type[BaseModel], name: str) -> inspect.Parameter:
    """A field of pydantic as the parameter that it is."""
    field = model.model_fields[name]
    annotation = next(
        base.__annotations__[name]
        for base in model.__mro__
        if name in vars(base).get("__annotations__", {})
    )
    default: object = inspect.Parameter.empty
    if not field.is_required():
        default = field.get_default(call_default_factory=True)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def members_of(cls: type) -> Iterator[tuple[str, object, object]]:
    """Name, value and annotation of the public members, those of the library's bases too."""
    owners = [base for base in cls.__mro__ if root_of(base) in OWN]
    foreign = [base for base in cls.__mro__ if base not in owners]
    found: dict[str, tuple[object, object]] = {}
    for owner in reversed(owners):
        annotations = vars(owner).get("__annotations__", {})
        for name in [*annotations, *vars(owner)]:
            value = vars(owner).get(name, inspect.Parameter.empty)
            inherited = any(name in vars(base) for base in foreign)
            written = is_written(value)
            if (written or not inherited) and is_public(name, written=written):
                found[name] = (value, annotations.get(name, inspect.Parameter.empty))
    for name in sorted(found):
        yield name, *found[name]


def is_written(value: object) -> bool:
    """Whether a member is a function in the library's source, not one that a decorator made."""
    function = function_of(value)
    if function is None:
        return False
    root = root_of(function)
    if root not in OWN:
        return False
    package = Path(str(sys.modules[root].__file__)).parent
    return package in Path(function.__code__.co_filename).parents


def root_of(value: type | FunctionType) -> str:
    """The import package of a class or function."""
    return value.__module__.partition(".")[0]


def function_of(value: object) -> FunctionType | None:
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, functools.cached_property):
        value = value.func
    return value if isinstance(value, FunctionType) else None


def is_public(name: str, *, written: bool) -> bool:
    if name.startswith("__"):
        return written and name not in OF_THE_CONSTRUCTOR
    return not name.startswith("_")


def describe_member(name: str, value: object, annotation: object) -> list[str]:
    function = function_of(value)
    if isinstance(value, (property, functools.cached_property)) and function is not None:
        returned = inspect.signature(function).return_annotation
        settable = isinstance(value, property) and value.fset is not None
        return [f"{'settable ' if settable else ''}property {name}: {written_type(returned)}"]
    if function is not None:
        kind = type(value).__name__ if isinstance(value, (staticmethod, classmethod)) else "def"
        return call(f"{kind} {name}", inspect.signature(function))
    text = name
    if annotation is not inspect.Parameter.empty:
        text += f": {written_type(annotation)}"
    if isinstance(value, (str, int, float)):
        text += f" = {value!r}"
    return [text]


def call(head: str, signature: inspect.Signature) -> list[str]:
    """A signature in one line, or a line for each parameter where that is too long."""
    parameters = list(parameters_of(signature))
    end = ")"
    if signature.return_annotation is not inspect.Signature.empty:
        end = f") -> {written_type(signature.return_annotation)}"
    line = f"{head}({', '.join(parameters)}{end}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{head}(", *(f"    {parameter}," for parameter in parameters), end]


def parameters_of(signature: inspect.Signature) -> Iterator[str]:
    """Each parameter as it is written, with the marks ``/`` and ``*`` between the kinds."""
    previous = None
    for parameter in signature.parameters.values():
        kind = parameter.kind
        if previous is parameter.POSITIONAL_ONLY and kind is not previous:
            yield "/"
        if kind is parameter.KEYWORD_ONLY and previous not in (kind, parameter.VAR_POSITIONAL):
            yield "*"
        yield shown(parameter)
        previous = kind
    if previous is inspect.Parameter.POSITIONAL_ONLY:
        yield "/"


def shown(parameter: inspect.Parameter) -> str:
    stars: dict[object, str] = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    text = stars.get(parameter.kind, "") + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {written_type(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        text += f" = {written_value(parameter.default)}"
    return text


def written_type(annotation: object) -> str:
    """An annotation as the code has it."""
    if isinstance(annotation, ForwardRef):
        return str(annotation.__forward_arg__)
    if isinstance(annotation, str):
        return annotation
    return re.sub(r"ForwardRef\('(.+?)'\)", r"\1", str(inspect.formatannotation(annotation)))


def written_value(value: object) -> str:
    """A default; an object without a lasting representation is named by its type."""
    if inspect.isfunction(value) or inspect.isclass(value):
        return value.__qualname__
    text = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in text else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"replace tests/{INVENTORY.name}")
    if parser.parse_args().write:
        INVENTORY.write_text(inventory(), encoding="utf-8")
    else:
        print(inventory(), end="")


if __name__ == "__main__":
    main()
