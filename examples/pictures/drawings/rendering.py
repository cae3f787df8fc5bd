"""Drawings of a set as pixels: SVG bodies of icon sets, or ready pictures."""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.errors import OptionError

try:
    import resvg_py
    from PIL import Image
except ImportError:
    raise OptionError(
        "drawings are rendered by resvg and pillow: pip install 'distillkit[pictures]'"
    ) from None

from .concepts import code_of
from .files import read_json
from .pictures import SIZE, Concept
from .sources import DrawingSet

_FINER = 2  # rendered so many times as large, then reduced: smoother edges
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{body}</svg>'
)


def render(
    drawn: DrawingSet, packages: Path, concepts: Sequence[Concept]
) -> tuple[np.ndarray, list[int]]:
    """The drawings of a set, ``(n, 64, 64, 4)`` uint8, and the number of the concept of each.

    Where a set has the same drawing for two concepts, the first has it: the neutral form.

    Args:
        drawn: the set.
        packages: the folder that holds a folder for every package.
        concepts: all concepts, in Unicode's order.

    Raises:
        OptionError: a set that draws none of the concepts.
    """
    folder = packages / drawn.package.folder
    pictures = _icons if (folder / "icons.json").exists() else _assets
    images: list[np.ndarray] = []
    numbers: list[int] = []
    known: set[bytes] = set()
    for number, image in pictures(folder, concepts):
        pixels = np.asarray(image.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS))
        digest = hashlib.sha256(pixels.tobytes()).digest()
        if digest in known:
            continue
        known.add(digest)
        images.append(pixels)
        numbers.append(number)
    if not images:
        raise OptionError(f"{drawn.package.name} draws none of the {len(concepts)} concepts")
    return np.stack(images), numbers


def _assets(folder: Path, concepts: Sequence[Concept]) -> Iterator[tuple[int, Image.Image]]:
    """Files that are named by the code of what they show."""
    files: dict[str, Path] = {}
    for file in sorted((folder / "assets").iterdir()):
        files.setdefault(code_of(file.stem), file)
    for number, concept in enumerate(concepts):
        if concept.code in files:
            with Image.open(files[concept.code]) as image:
                yield number, image.convert("RGBA")


def _icons(folder: Path, concepts: Sequence[Concept]) -> Iterator[tuple[int, Image.Image]]:
    """SVG bodies of an Iconify set."""
    whole = read_json(folder / "icons.json")
    of_character = folder / "chars.json"
    characters = read_json(of_character) if of_character.exists() else {}
    found = match(whole, characters, concepts)
    for number in sorted(found):
        yield number, _rasterize({**_frame(whole), **whole["icons"][found[number]]})


def match(
    whole: Mapping[str, Any], characters: Mapping[str, str], concepts: Sequence[Concept]
) -> dict[int, str]:
    """The number of a concept -> the name of its icon: by its character, else by its name.

    Args:
        whole: the contents of ``icons.json``.
        characters: the contents of ``chars.json``, character code -> icon or alias.
        concepts: all concepts.
    """
    icons = {name: name for name in whole["icons"]}
    # an alias that only renames; others turn or mirror a drawing
    icons |= {
        name: alias["parent"]
        for name, alias in whole.get("aliases", {}).items()
        if alias.keys() == {"parent"} and alias["parent"] in whole["icons"]
    }
    numbers = {concept.code: number for number, concept in enumerate(concepts)}
    found: dict[int, str] = {}
    for code, name in characters.items():
        number = numbers.get(code_of(code))
        if number is not None and name in icons:
            found.setdefault(number, icons[name])
    named = _by_name(concepts)
    taken = {*characters.values()}
    for name, icon in icons.items():
        fitting = named[_letters(name)]
        if len(fitting) == 1 and name not in taken:
            (number,) = fitting
            found.setdefault(number, icon)
    return found


def _by_name(concepts: Sequence[Concept]) -> defaultdict[str, set[int]]:
    named: defaultdict[str, set[int]] = defaultdict(set)
    for number, concept in enumerate(concepts):
        for name in concept.names:
            named[_letters(name)].add(number)
    return named


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _frame(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Iconify's defaults, and those of the set."""
    default = {"left": 0, "top": 0, "width": 16, "height": 16}
    return {key: whole.get(key, value) for key, value in default.items()}


def _rasterize(icon: Mapping[str, Any]) -> Image.Image:
    """A square picture of an icon, centred."""
    side = SIZE * _FINER
    svg = _SVG.format_map(icon)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if image.size == (side, side):
        return image
    square = Image.new("RGBA", (side, side))
    image.thumbnail(square.size)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
