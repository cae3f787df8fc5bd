"""A folder of drawings and tasks in its real format, with features of its own: noise that fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from drawings import pictures, tasks
from drawings.files import write_json
from drawings.sources import SETS
from drawings.words import SUBGROUPS
from pictures_study.perception import learn
from pictures_study.words import vocabulary_of
from pictures_study.world import singles_of, write_space

CLASSES = ("animal-bird", "food-fruit", "drink", "tool", "time")
KNOWN, NEW = 9, 4  # concepts of each class
FEATURES, VECTORS = 24, 16
GRID = 2
STEPS = 120  # of perception


def concepts():
    """So many of each class, the last ones new."""
    found = []
    for subgroup in CLASSES:
        word = SUBGROUPS[subgroup].singular
        for number in range(KNOWN + NEW):
            name, code = f"{word} of kind {number}", f"{0x1F700 + len(found):x}"
            found.append(
                pictures.Concept(
                    code=code, character=chr(int(code, 16)), name=name, names=(name,),
                    keywords=(), classes=(word,), group="things", subgroup=subgroup,
                    is_new=number >= KNOWN,
                )
            )  # fmt: skip
    return found


def write(folder: Path, train: int = 120, test: int = 40) -> None:
    """Everything that the study reads; features that tell what a drawing shows, and some noise."""
    table = concepts()
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (len(table), 8, 8, 4), dtype=np.uint8)
    for drawn in SETS:
        pictures.save_set(folder / "sets" / f"{drawn.name}.npz", images, range(len(table)))
    pictures.save_table(folder / "concepts.json", table)
    held = pictures.load_drawings(folder)
    for task in tasks.TASKS:
        for split in tasks.SPLITS:
            size = train if split == "train" else test
            tasks.save(folder, tasks.make(held, task, split, size, GRID))
    write_json(folder / "built.json", {})
    kinds = random.normal(size=(len(table), FEATURES)).astype(np.float32)
    features = kinds[held.concepts] + 0.1 * random.normal(size=(len(held), FEATURES))
    np.savez(folder / "features.npz", features=features.astype(np.float16))
    vocabulary = vocabulary_of(folder, held)
    vectors = random.normal(size=(len(vocabulary), VECTORS)).astype(np.float32)
    np.savez(folder / "words.npz", words=np.array(vocabulary.words), vectors=vectors)
    singles = singles_of(held, folder, vocabulary, torch.from_numpy(vectors))
    write_space(folder, learn(singles, seed=0, steps=STEPS))
