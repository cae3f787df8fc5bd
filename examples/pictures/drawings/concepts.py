"""What is drawn: Unicode's characters with the names, keywords and groups that people gave them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import read_json
from .pictures import Concept
from .sources import CLDR, CLDR_DERIVED, EMOJIBASE, SHORT_CODES
from .words import classes_of

GROUPS = (
    "smileys-emotion", "people-body", "animals-nature", "food-drink", "travel-places", "activities",
    "objects",
)  # fmt: skip
_PRESENTATION = "fe0f"  # asks for the coloured form of a character, and names nothing
_NEW_OF_256 = 37  # one concept in seven


def read_concepts(packages: Path) -> tuple[Concept, ...]:
    """Every concept in Unicode's order, where neutral forms come before the others.

    Args:
        packages: the folder that holds a folder for every package.
    """
    said = _annotations(packages)
    emojibase = packages / EMOJIBASE.folder
    meta = read_json(emojibase / "meta/groups.json")
    formal = read_json(emojibase / "meta/unicode-names.json")
    codes = [read_json(emojibase / f"en/shortcodes/{name}.json") for name in SHORT_CODES]
    found: dict[str, Concept] = {}
    for entry in read_json(emojibase / "en/data.json"):
        group = meta["groups"].get(str(entry.get("group")))
        if group not in GROUPS:
            continue
        code = code_of(entry["hexcode"])
        own = said.get(code, {})
        name = (own.get("tts") or [entry["label"]])[0]
        subgroup = meta["subgroups"][str(entry["subgroup"])]
        found[code] = Concept(
            code=code,
            character=entry["emoji"],
            name=name,
            names=_names(name, entry, own, codes, formal),
            keywords=tuple(dict.fromkeys([*own.get("default", ()), *entry.get("tags", ())])),
            classes=classes_of(name, subgroup),
            group=group,
            subgroup=subgroup,
            is_new=is_new(code),
        )
    return tuple(found.values())


def is_new(code: str) -> bool:
    """Whether a concept is kept out of training: one in seven, whatever else there is."""
    return hashlib.sha256(code.encode()).digest()[0] < _NEW_OF_256


def code_of(hexcode: str) -> str:
    """The code of a character: its code points in lower case, without what asks for colour.

    Examples:
        >>> code_of("1F3CB-FE0F-200D-2642-FE0F")
        '1f3cb-200d-2642'
    """
    return "-".join(point for point in hexcode.lower().split("-") if point != _PRESENTATION)


def _annotations(packages: Path) -> dict[str, Mapping[str, Any]]:
    """Code -> ``{"tts": [name], "default": keywords}`` of Unicode's CLDR."""
    derived = read_json(packages / CLDR_DERIVED.folder / CLDR_DERIVED.files[0])
    plain = read_json(packages / CLDR.folder / CLDR.files[0])
    both = {
        **derived["annotationsDerived"]["annotations"],
        **plain["annotations"]["annotations"],
    }
    return {code_of("-".join(f"{ord(one):x}" for one in text)): v for text, v in both.items()}


def _names(
    name: str,
    entry: Mapping[str, Any],
    said: Mapping[str, Any],
    short_codes: Sequence[Mapping[str, Any]],
    formal: Mapping[str, str],
) -> tuple[str, ...]:
    """Everything that anybody calls a concept, its CLDR name first."""
    hexcode = entry["hexcode"]
    found = [name, entry["label"], *said.get("tts", ())]
    for table in short_codes:
        codes = table.get(hexcode, [])
        found += [codes] if isinstance(codes, str) else codes
    found.append(formal.get(hexcode) or formal.get(hexcode.replace("-FE0F", "")) or "")
    return tuple(dict.fromkeys(one for one in found if one))
