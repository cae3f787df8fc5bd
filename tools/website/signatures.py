"""Signatures as a reader wants them: as the code has them, aliases and bounds resolved."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

from tools import public_api

_DEPTH = 3  # of aliases that name aliases


def signature_of(value: object) -> tuple[str, str] | None:
    """Parameters in parentheses and the returned type; None where Python knows none."""
    if inspect.isclass(value):
        signature = public_api.constructor_of(value)
    else:
        try:
            signature = inspect.signature(typing.cast("Any", value))
        except (TypeError, ValueError):
            return None
    if signature is None:
        return None
    known = namespace_of(value)
    parameters = [
        one.replace(annotation=readable(one.annotation, known))
        for one in signature.parameters.values()
        if one.name != "self"
    ]
    lines = public_api.parameters_of(signature.replace(parameters=parameters))
    returned = signature.return_annotation
    if returned is not inspect.Signature.empty:
        returned = public_api.written_type(readable(returned, known))
    text = ", ".join(lines).replace("<factory>", "...")
    return f"({text})", "" if returned is inspect.Signature.empty else returned


def namespace_of(value: object) -> Mapping[str, object]:
    """The global names of the module that a function or class is written in."""
    function = inspect.unwrap(value) if inspect.isroutine(value) else value
    module = inspect.getmodule(function)
    return vars(module) if module else {}


def readable(annotation: object, known: Mapping[str, object]) -> object:
    """An annotation with private aliases replaced by what they stand for, and bounds left out."""
    if annotation is inspect.Parameter.empty:
        return annotation
    text = public_api.written_type(annotation)
    for _ in range(_DEPTH):
        try:
            tree = ast.parse(text, mode="eval")
        except SyntaxError:  # a representation that is no expression, such as <object>
            return text
        text = ast.unparse(_Resolved(known).visit(tree))
    return text


class _Resolved(ast.NodeTransformer):
    """Names of aliases become expressions, ``Annotated[x, ...]`` becomes ``x``."""

    def __init__(self, known: Mapping[str, object]) -> None:
        self.known = known

    def visit_Name(self, node: ast.Name) -> ast.AST:
        value = self.known.get(node.id)
        if value is None or inspect.isclass(value) or inspect.ismodule(value):
            return node
        is_typing = getattr(value, "__module__", "") == "typing" and hasattr(value, "_name")
        if is_typing and not typing.get_args(value):  # Any, Literal, Callable themselves
            return node
        text = value if isinstance(value, str) else _written(value)
        try:
            return ast.parse(text, mode="eval").body
        except SyntaxError:
            return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id == "Annotated":
            first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
            return self.visit(first)
        if isinstance(node.value, ast.Name) and node.value.id == "Literal":
            return node
        return self.generic_visit(node)


def _written(value: object) -> str:
    """An alias as code: short names, bounds left out."""
    if typing.get_origin(value) is typing.Annotated:
        return _written(typing.get_args(value)[0])
    if inspect.isclass(value) and not typing.get_args(value):
        return value.__qualname__
    text = re.sub(r"ForwardRef\('([^']+)'[^)]*\)", r"\1", repr(value))
    text = re.sub(
        r"Annotated\[([^,\[\]]+), [^\]]*\]\)\]|Annotated\[([^,\[\]]+), [^\]]*\]", r"\1\2", text
    )
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)
