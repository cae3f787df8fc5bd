"""Plain Python functions that show their calls to a function mode, however they were imported.

``from library import fused_attention`` copies a reference, so replacing the attribute of the module
would miss it. What all references share is the function's code: while a capture is open, the code
hands the call to the modes that are on, as torch's own functions do, and is put back afterwards.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Iterable
from typing import Any

from torch.overrides import handle_torch_function

from ..._torch_private import is_function_mode_on

_HERE = 0x5EE  # the place in the code below where the function that answers goes


def _template(*args: Any, **kwargs: Any) -> Any:
    answer: Any = 0x5EE
    return answer(*args, **kwargs)


class ShownFunctions:
    """Functions that show their calls while this is open; several may be open at once.

    Args:
        functions: plain Python functions; what is none (torch's own, operators) is left alone.
    """

    _lock = threading.Lock()  # threads open and close them side by side
    # one code for good: a compiler's guards hold on to the code that was there when it traced
    _codes: dict[types.FunctionType, tuple[types.CodeType, types.CodeType]] = {}  # noqa: RUF012
    _open: dict[types.FunctionType, tuple[types.CodeType, int]] = {}  # noqa: RUF012 (of the process)

    def __init__(self, functions: Iterable[Any]) -> None:
        self._functions = [
            one
            for one in functions
            if isinstance(one, types.FunctionType)
            and not (one.__module__ or "").startswith(_OVERRIDABLE)  # of code that is run: None
        ]

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        return not self._functions

    def open(self) -> None:
        """Make every function ask the modes that are on."""
        with self._lock:
            for function in self._functions:
                code, count = self._open.get(function, (function.__code__, 0))
                if count == 0:
                    known = self._codes.get(function)
                    if known is None or known[0] is not code:
                        known = self._codes[function] = code, _showing_code(function)
                    function.__code__ = known[1]
                self._open[function] = code, count + 1

    def close(self) -> None:
        """Undo :meth:`open`; the last one puts the functions back."""
        with self._lock:
            for function in self._functions:
                code, count = self._open.pop(function)
                if count > 1:
                    self._open[function] = code, count - 1
                else:
                    function.__code__ = code


_OVERRIDABLE = "torch.nn.functional"  # these ask the modes by themselves


def _showing_code(function: types.FunctionType) -> types.CodeType:
    """Code that asks the modes that are on first, then does what the function does."""
    plain = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    plain.__kwdefaults__ = function.__kwdefaults__

    def answer(*args: Any, **kwargs: Any) -> Any:
        if is_function_mode_on():
            return handle_torch_function(function, (), *args, **kwargs)
        return plain(*args, **kwargs)

    code = _template.__code__
    constants = tuple(answer if one == _HERE else one for one in code.co_consts)
    return code.replace(
        co_consts=constants,
        co_freevars=function.__code__.co_freevars,
        co_name=function.__code__.co_name,
    )
