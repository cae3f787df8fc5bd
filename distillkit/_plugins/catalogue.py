"""The library's losses and their sources, read from data: no loss is imported.

The entries are checked by hand because a listing may not import pydantic.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from ..errors import SpecError, did_you_mean, unknown_name
from .specs import LossSpec

_KEYS = {
    "summary": str,
    "signature": str,
    "tags": list,
    "bound": float,
    "example": str,
    "reference": str,
    "compares": str,
    "use_when": str,
    "cost": str,
    "needs": str,
}
_OPTIONAL = ("bound", "example")
_IN_WORDS = {str: "a text", list: "a list of strings", float: "a number with a decimal point"}


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A loss of the library, and its row in the guide to choosing one.

    Attributes:
        spec: the loss as the registry knows it.
        compares: what of the two models it compares.
        use_when: when to prefer it to the others.
        cost: what one value costs, in the sizes of its inputs.
        needs: what must hold for its inputs.
    """

    spec: LossSpec
    compares: str
    use_when: str
    cost: str
    needs: str


@functools.cache
def catalogue() -> tuple[CatalogueEntry, ...]:
    """The library's losses, in the order of the file.

    Raises:
        SpecError: an entry is wrong; the message names it.
    """
    text = _read("catalogue.toml")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"the catalogue of losses is no TOML: {error}") from None
    return tuple(entries_of(table, bibliography()))


@functools.cache
def bibliography() -> dict[str, str]:
    """Key -> BibTeX entry, of every source that the library cites."""
    entries = [entry.strip() for entry in _read("references.bib").split("\n\n") if entry.strip()]
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in entries}


def entries_of(table: Mapping[str, Any], sources: Mapping[str, str]) -> Iterator[CatalogueEntry]:
    """The checked entries of a catalogue.

    Args:
        table: the name of a loss -> its entry, as TOML gives them.
        sources: the bibliography that the entries refer to.
    """
    for name, entry in table.items():
        _check_entry(name, entry, sources)
        spec = LossSpec(
            name,
            f"distillkit.losses:{name}",
            signature=entry["signature"],
            tags=tuple(entry["tags"]),
            bound=entry.get("bound"),
            example=entry.get("example"),
            summary=entry["summary"],
            reference=entry["reference"],
        )
        yield CatalogueEntry(
            spec, entry["compares"], entry["use_when"], entry["cost"], entry["needs"]
        )


def _check_entry(name: str, entry: object, sources: Mapping[str, str]) -> None:
    if not isinstance(entry, Mapping):
        raise SpecError(f"catalogue of losses: {name!r} is a table, [{name}]; got {entry!r}")
    place = f"catalogue of losses, [{name}]"
    for key, value in entry.items():
        if key not in _KEYS:
            raise SpecError(f"{place}: there is no key {key!r}; {did_you_mean(key, _KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise SpecError(f"{place}: {key} is {_IN_WORDS[_KEYS[key]]}; got {value!r}")
    for key in _KEYS:
        if key not in _OPTIONAL and entry.get(key, "") == "":
            raise SpecError(f"{place}: {key} is missing; write {key} = ...")
    if entry["reference"] not in sources:
        unknown = unknown_name("source in references.bib", entry["reference"], sources)
        raise SpecError(f"{place}: {unknown}")


def _read(name: str) -> str:
    # through the package above: to ask for the files of distillkit.losses imports it, and torch
    file: Traversable = files("distillkit") / "losses" / name
    return file.read_text(encoding="utf-8")
