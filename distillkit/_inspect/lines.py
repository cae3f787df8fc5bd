"""The lines of an adapter file: what was seen, and what is missing, each where it stands."""

from __future__ import annotations

import json
import textwrap
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Line:
    """One key of a file.

    Attributes:
        key: its name.
        value: what TOML can hold.
        comment: where it comes from, where that is not obvious.
    """

    key: str
    value: Any
    comment: str = ""

    def __str__(self) -> str:
        said = f"  # {self.comment}" if self.comment else ""
        return f"{self.key} = {toml(self.value)}{said}"


@dataclass(frozen=True)
class Hint:
    """A line that only its author can write, as a comment.

    Attributes:
        line: the line as it would stand there.
        why: what to look at.
        is_missing: whether the file is incomplete without it.
    """

    line: str
    why: str
    is_missing: bool = False

    def __str__(self) -> str:
        said = f"{'missing: ' * self.is_missing}{self.line}  # {self.why}"
        return "\n".join(f"# {part}" for part in textwrap.wrap(said, 96, subsequent_indent="  "))


@dataclass
class Table:
    """One table of a file: the keys of one run of tokens, or those at its top.

    Attributes:
        header: ``[[tokens.joint]]``; empty at the top.
        lines: in their order.
    """

    header: str = ""
    lines: list[Line | Hint] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([*([self.header] if self.header else []), *map(str, self.lines)])


@dataclass
class AdapterText:
    """An adapter file in the making."""

    top: Table = field(default_factory=Table)
    runs: list[Table] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """The lines that the file lacks."""
        return [
            f"{table.header} {line.line}".strip()
            for table in (self.top, *self.runs)
            for line in table.lines
            if isinstance(line, Hint) and line.is_missing
        ]

    @property
    def tables(self) -> dict[str, Any]:
        """The file, read."""
        return tomllib.loads(str(self))

    def __str__(self) -> str:
        return "\n\n".join(str(table) for table in (self.top, *self.runs)) + "\n"


def toml(value: Any) -> str:
    """A value as TOML writes it.

    Examples:
        >>> toml({"text": "a.*", "equals": [1, 2], "images": True})
        '{ text = "a.*", equals = [1, 2], images = true }'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {toml(one)}" for key, one in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _key(key: str) -> str:
    plain = all(one.isalnum() or one in "-_" for one in key)
    return key if plain else json.dumps(key)


def comments(text: str | Iterable[str], width: int = 98) -> str:
    """Text as comment lines."""
    lines: Sequence[str] = text.splitlines() if isinstance(text, str) else list(text)
    wrapped = [part for line in lines for part in (textwrap.wrap(line, width) or [""])]
    return "\n".join(f"# {line}".rstrip() for line in wrapped)
