"""An aligner from what a recipe says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..._plugins.registry import lookup
from ..._plugins.specs import AlignerSpec, resolve
from ...errors import RecipeError


def make_aligner(given: str | Mapping[str, Any]) -> nn.Module:
    """The aligner of a name, or of a table with a ``name`` and its options, as a module."""
    table = {"name": given} if isinstance(given, str) else dict(given)
    if "name" not in table:
        raise RecipeError(f"an aligner is a name or a table with a `name`; got {given!r}")
    factory = resolve(lookup(AlignerSpec, table.pop("name")).factory)
    try:
        inspect.signature(factory).bind(**table)
    except TypeError as error:
        raise RecipeError(f"aligner {given!r}: {error}") from None
    made = factory(**table)
    return made if isinstance(made, nn.Module) else _Untrained(made, given)


class _Untrained(nn.Module):
    """An aligner without parameters, as a module; a pickle names it and makes it again."""

    def __init__(
        self, function: Callable[..., tuple[Any, Any]], given: str | Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.function, self._given = function, given

    def __reduce__(self) -> tuple[Any, ...]:
        return make_aligner, (self._given,)

    def forward(self, student: Any, teacher: Any, **tokens: Any) -> tuple[Any, Any]:
        return self.function(student, teacher, **tokens)


def takes_tokens(aligner: nn.Module) -> bool:
    """Whether an aligner asks, by these two parameters, for what is known of the tokens."""
    function = aligner.function if isinstance(aligner, _Untrained) else aligner.forward
    return {"student_tokens", "teacher_tokens"} <= inspect.signature(function).parameters.keys()
