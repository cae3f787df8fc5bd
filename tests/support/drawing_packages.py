"""Packages of drawings, names and groups in their real formats: squares and discs by nobody."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import baselines
import numpy as np
from drawings.concepts import is_new
from drawings.pictures import Concept, Pictures
from drawings.sources import CLDR, CLDR_DERIVED, EMOJIBASE, SETS, SHORT_CODES
from drawings.words import SUBGROUPS as OF_CLASS
from drawings.words import classes_of

SUBGROUPS = {
    "animal-bird": "animals-nature",
    "food-fruit": "food-drink",
    "drink": "food-drink",
    "tool": "objects",
    "time": "travel-places",
}
KNOWN, NEW = 6, 4  # concepts of each subgroup
NO_THING = ("1f600", "face")  # in no class: it is retrieved, and in no scene
FIRST = 0x1F700


def concepts():
    """(code, name, subgroup, group): of each subgroup as many known and new ones as wanted."""
    found, point = [(*NO_THING, "face-smiling", "smileys-emotion")], FIRST
    for subgroup, group in SUBGROUPS.items():
        left = {False: KNOWN, True: NEW}
        while any(left.values()):
            code, point = f"{point:x}", point + 1
            if left[is_new(code)]:
                left[is_new(code)] -= 1
                found.append((code, f"{subgroup} {code}", subgroup, group))
    return found


def made_pictures():
    """Five concepts of every class, drawn by nobody, all of them for training."""
    shown = [(name, place) for name in OF_CLASS for place in range(5)]
    table = [
        Concept(
            code=f"{FIRST + number:x}", character="", name=f"{name} {place}",
            names=(f"{name} {place}",), keywords=(), classes=classes_of("", name), group="",
            subgroup=name, is_new=False,
        )
        for number, (name, place) in enumerate(shown)
    ]  # fmt: skip
    count = 2 * len(table)
    texts = np.full(count, "train")
    images = np.zeros((count, 1, 1, 4), np.uint8)
    numbers = np.arange(count) % len(table)
    return Pictures(images, texts, texts, numbers, texts, tuple(table))


def write(folder: Path) -> None:
    """Everything that a build fetches."""
    made = concepts()
    _write_texts(folder, made)
    for number, drawn in enumerate(SETS):
        package = folder / drawn.package.folder
        if drawn.package.files == ("assets/",):
            _write_assets(package / "assets", made)
        else:
            _write_icons(package, made, number)


def _write_texts(folder, made):
    groups = sorted({group for *_, group in made})
    subgroups = sorted({subgroup for *_, subgroup, _ in made})
    entries = [
        {
            "label": name.upper(),
            "hexcode": code.upper(),
            "emoji": chr(int(code, 16)),
            "tags": [subgroup.split("-")[0]],
            "group": groups.index(group),
            "subgroup": subgroups.index(subgroup),
        }
        for code, name, subgroup, group in made
    ]
    # a regional indicator has no group, and is no concept
    entries.append({"label": "letter", "hexcode": "1F1E6", "emoji": "\U0001f1e6"})
    emojibase = folder / EMOJIBASE.folder
    _dump(emojibase / "en/data.json", entries)
    meta = {
        "groups": {str(number): name for number, name in enumerate(groups)},
        "subgroups": {str(number): name for number, name in enumerate(subgroups)},
    }
    _dump(emojibase / "meta/groups.json", meta)
    _dump(
        emojibase / "meta/unicode-names.json", {code.upper(): f"SIGN {code}" for code, *_ in made}
    )
    for table in SHORT_CODES:
        codes = {code.upper(): [f"{table}_{code}", f"{table}_x{code}"] for code, *_ in made}
        _dump(emojibase / f"en/shortcodes/{table}.json", codes)
    said = {
        chr(int(code, 16)): {"default": ["made", name], "tts": [name]} for code, name, *_ in made
    }
    _dump(folder / CLDR.folder / CLDR.files[0], {"annotations": {"annotations": said}})
    derived = {"annotationsDerived": {"annotations": {}}}
    _dump(folder / CLDR_DERIVED.folder / CLDR_DERIVED.files[0], derived)


def _write_icons(package, made, number):
    """A shape for each concept; the last two have the same one, the first an alias."""
    shapes = [*range(len(made) - 1), len(made) - 2]
    icons = {
        f"icon-{code}": {"body": _shape(shape, number)}
        for (code, *_), shape in zip(made, shapes, strict=True)
    }
    characters = {code: f"icon-{code}" for code, *_ in made[2:]}
    first, second = made[:2]
    # two are found by name alone: one by an alias, one by a short code
    icons["parent"] = icons.pop(f"icon-{first[0]}")
    icons["github-" + second[0]] = icons.pop(f"icon-{second[0]}")
    aliases = {
        f"cldr_{first[0]}": {"parent": "parent"},
        f"cldr_{second[0]}": {"parent": "parent", "hFlip": True},
    }
    whole = {"prefix": "made", "icons": icons, "aliases": aliases, "width": 32, "height": 32}
    _dump(package / "icons.json", whole)
    _dump(package / "chars.json", characters)


def _shape(shape, number):
    red, green, blue = (shape * 37) % 256, (shape * 91) % 256, (number * 23) % 256
    fill = f"rgb({red},{green},{blue})"
    if number % 2:
        return f'<circle cx="16" cy="16" r="14" fill="{fill}"/>'
    return f'<rect x="3" y="5" width="26" height="20" fill="{fill}"/>'


def _write_assets(folder, made):
    from PIL import Image

    folder.mkdir(parents=True)
    for number, (code, *_) in enumerate(made):
        pixels = np.full((80, 80, 4), (number, 255 - number, 128, 255), np.uint8)
        Image.fromarray(pixels).save(folder / f"{code}-fe0f.webp", lossless=True)


def _dump(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def files(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def run_baselines(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["baselines.py", *map(str, arguments)])
    baselines.main()
