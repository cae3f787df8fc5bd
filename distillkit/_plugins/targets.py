"""Which callables can be seen when a model calls them: what an operation may have as its target.

Capture sees torch's own functions and custom operators, and plain Python functions, whose code it
borrows while it looks. What is called in any other way it never notices. No torch is imported here.
"""

from __future__ import annotations

import functools
import types
from typing import Any

_OPERATORS = ("OpOverload", "OpOverloadPacket", "CustomOpDef")  # classes of torch


def why_unseen(target: Any) -> str | None:
    """Why capture can never see a call of a function, and the fix; None: it can.

    Args:
        target: what a model calls, or its reference.

    Examples:
        >>> why_unseen(functools.partial(max, 1))
        'functools.partial calls max ... name that function, target=<partial>.func'
        >>> why_unseen("acme.kernels:attend")
    """
    if isinstance(target, str):
        return _FUNCTION_APPLY if target.endswith(".apply") and ":" in target else None
    if isinstance(target, types.FunctionType) or _is_operator(type(target)):
        return None
    if isinstance(target, functools.partial):
        inner = getattr(target.func, "__name__", repr(target.func))
        return (
            f"functools.partial calls {inner} and shows itself to nobody; name that function, "
            "target=<partial>.func"
        )
    if isinstance(target, types.MethodType):
        owner = target.__self__
        if isinstance(owner, type) and target.__name__ == "apply":
            return _FUNCTION_APPLY
        name = owner.__qualname__ if isinstance(owner, type) else type(owner).__qualname__
        function = f"{name}.{target.__name__}"
        return (
            f"{function} is bound to one object; name the function itself, which every object "
            f'calls, target="{target.__module__}:{function}", whose reader gets the object first'
        )
    if isinstance(target, (types.BuiltinFunctionType, types.MethodDescriptorType)):
        return None if _is_torchs(target) else f"{target!r} is compiled code. {_WRAP}"
    if isinstance(target, type):
        return f"{target.__qualname__} is a class. {_WRAP}"
    return f"an object of the class {type(target).__qualname__} is called by its class. {_WRAP}"


def _is_operator(cls: type) -> bool:
    """Whether a class is one of torch's for operators, wherever torch keeps it."""
    return cls.__name__ in _OPERATORS and cls.__module__.partition(".")[0] == "torch"


def _is_torchs(function: Any) -> bool:
    """Whether torch itself provides a compiled function, and so shows its calls."""
    owner = getattr(function, "__objclass__", None) or getattr(function, "__self__", None)
    module = getattr(function, "__module__", None) or getattr(owner, "__module__", None) or ""
    if isinstance(owner, types.ModuleType):
        module = owner.__name__
    return module.partition(".")[0] == "torch"


_WRAP = (
    "Name the plain Python function that models call it by, or give it one, "
    "`def attend(*args): return kernel(*args)`, or make it an operator, torch.library.custom_op"
)
_FUNCTION_APPLY = (
    "apply of a torch.autograd.Function is called past everything that could show it. Name the "
    "plain Python function that models call, `def attend(q, k, v): return Attend.apply(q, k, v)`"
)
