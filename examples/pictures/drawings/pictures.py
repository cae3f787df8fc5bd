"""Drawings with what they show and who drew them, as they lie in a folder that was built."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distillkit.errors import OptionError, did_you_mean

from .files import read_json, whole_file, write_json
from .sources import ARTISTS, SETS

OUT = Path(__file__).parents[1] / "out"
"""Where ``build.py`` puts everything, unless told otherwise."""
SIZE = 64
FINISHED = "built.json"
SPLITS = ("train", "validation", "test", "seen", "new_concepts")
_SEEN_OF_256 = 26  # one drawing in ten


@dataclass(frozen=True)
class Concept:
    """Something that is drawn.

    Attributes:
        code: the code points of its character.
        character: the character.
        name: its CLDR name; no two concepts share one.
        names: all of its names, ``name`` first.
        keywords: of CLDR and emojibase.
        classes: singular words for the classes that it belongs to; none if it is in no scene.
        group: of Unicode.
        subgroup: of Unicode.
        is_new: it is never drawn in training.
    """

    code: str
    character: str
    name: str
    names: tuple[str, ...]
    keywords: tuple[str, ...]
    classes: tuple[str, ...]
    group: str
    subgroup: str
    is_new: bool


@dataclass(frozen=True, eq=False)
class Pictures:
    """All drawings.

    Attributes:
        images: ``(n, 64, 64, 4)`` uint8, red, green, blue and opacity.
        sets: ``(n,)`` the name of the set of each drawing.
        artists: ``(n,)`` who drew it.
        concepts: ``(n,)`` what it shows, an index into ``table``.
        splits: ``(n,)`` where it is used, see :meth:`of_split`.
        table: the concepts.
    """

    images: np.ndarray
    sets: np.ndarray
    artists: np.ndarray
    concepts: np.ndarray
    splits: np.ndarray
    table: tuple[Concept, ...]

    def __len__(self) -> int:
        return len(self.images)

    def of_split(self, split: str) -> np.ndarray:
        """The numbers of the drawings of a split.

        ``"train"``, ``"validation"`` and ``"test"`` have different artists and the same concepts.
        ``"seen"`` are drawings by the artists of training that are kept out of it, and
        ``"new_concepts"`` drawings by the artists of test of what training never shows. The rest,
        new concepts by other artists, is used nowhere.

        Raises:
            OptionError: no such split.
        """
        if split not in SPLITS:
            raise OptionError(f"no split {split!r}: {did_you_mean(split, SPLITS)}")
        return np.flatnonzero(self.splits == split)


def split_of(set_name: str, artist: str, concept: Concept) -> str:
    """Where a drawing is used; ``""`` is nowhere."""
    (split,) = [name for name, artists in ARTISTS.items() if artist in artists]
    if concept.is_new:
        return "new_concepts" if split == "test" else ""
    digest = hashlib.sha256(f"{set_name}/{concept.code}".encode()).digest()
    return "seen" if split == "train" and digest[0] < _SEEN_OF_256 else split


def save_set(file: Path, images: np.ndarray, concepts: Sequence[int]) -> None:
    """Write the drawings of one set."""
    with whole_file(file) as beside, beside.open("wb") as stream:
        np.savez_compressed(stream, images=images, concepts=np.asarray(concepts, np.int64))


def save_table(file: Path, table: Sequence[Concept]) -> None:
    """Write the concepts."""
    write_json(file, [dataclasses.asdict(concept) for concept in table])


def load_table(file: Path) -> tuple[Concept, ...]:
    """Read the concepts."""
    return tuple(
        Concept(**{key: tuple(v) if isinstance(v, list) else v for key, v in row.items()})
        for row in read_json(file)
    )


def check_built(folder: str | Path) -> Path:
    """The folder, if ``build.py`` finished there.

    Raises:
        OptionError: it did not.
    """
    folder = Path(folder)
    if not (folder / FINISHED).exists():
        raise OptionError(
            f"{folder} holds no drawings, or not all: python examples/pictures/build.py "
            f"--out {folder}"
        )
    return folder


def load(folder: str | Path) -> Pictures:
    """The drawings of a folder that ``build.py`` built.

    Raises:
        OptionError: nothing was built there, or not all.
    """
    return load_drawings(check_built(folder))


def load_drawings(folder: Path) -> Pictures:
    """The drawings of a folder that is not finished: its tasks are still to be made."""
    table = load_table(folder / "concepts.json")
    images, concepts, sets, artists, splits = [], [], [], [], []
    for drawn in SETS:
        with np.load(folder / "sets" / f"{drawn.name}.npz") as held:
            images.append(held["images"])
            numbers = held["concepts"]
        concepts.append(numbers)
        sets += [drawn.name] * len(numbers)
        artists += [drawn.artist] * len(numbers)
        splits += [split_of(drawn.name, drawn.artist, table[number]) for number in numbers]
    shown = np.concatenate(concepts)
    return Pictures(
        images=np.concatenate(images),
        sets=np.array(sets),
        artists=np.array(artists),
        concepts=shown,
        splits=_without_strangers(np.array(splits), shown),
        table=table,
    )


def _without_strangers(splits: np.ndarray, concepts: np.ndarray) -> np.ndarray:
    """Other splits use no concept of which no drawing was left to training."""
    known = np.isin(concepts, concepts[splits == "train"])
    return np.where(known | (splits == "new_concepts"), splits, "")
