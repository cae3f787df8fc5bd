"""Tables of TOML files as pydantic models, and what is wrong with them in one message."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from .errors import DistillKitError, unknown_name


class Table(BaseModel):
    """A frozen table; an unknown key is an error that says which one was meant."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    what: ClassVar[str] = "table"

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, table: Any) -> Any:
        for key in table if isinstance(table, dict) else ():
            if key not in cls.model_fields:
                raise unknown_name(f"key of {cls.what}", key, cls.model_fields)
        return table


T = TypeVar("T", bound=Table)


Line = Callable[[Sequence[str | int], str], int]
"""The line of a file on which a message about a place of its tables belongs."""


def validated(
    model: type[T],
    table: Mapping[str, Any],
    name: str,
    error_type: type[DistillKitError],
    line: Line | None = None,
) -> T:
    """The table as ``model``, or an error that names every place where it is wrong.

    Args:
        model: what the table should be.
        table: as it was read.
        name: of the table as a whole, for messages.
        error_type: the error to raise.
        line: where a message belongs in the file, if there is one.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        found = []
        for one in error.errors():
            message = one["msg"].replace("Value error, ", "")
            place = ".".join(map(str, one["loc"]))
            at = [] if line is None else [f"line {line(one['loc'], message)}"]
            found.append(f"  {': '.join([*at, *filter(None, [place]), message])}")
        raise error_type("\n".join([f"{name}:", *found])) from None
