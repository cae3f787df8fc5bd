"""Tables of TOML files as pydantic models, and what is wrong with them in one message."""

from __future__ import annotations

from collections.abc import Mapping
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


def validated(
    model: type[T], table: Mapping[str, Any], name: str, error_type: type[DistillKitError]
) -> T:
    """The table as ``model``, or an error that names every place where it is wrong."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        found = [
            f"  {'.'.join(map(str, one['loc'])) or name}: {one['msg']}".replace("Value error, ", "")
            for one in error.errors()
        ]
        raise error_type("\n".join([f"{name}:", *found])) from None
