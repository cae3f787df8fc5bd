"""DigitScene-VQA: real handwritten digits in a 3 x 3 grid, and questions about them.

A scene holds 2 to 5 different digits out of six, each a scan from scikit-learn's ``load_digits`` in
one of four colours. A question asks for the colour, the row or the column of one digit. Scans, and
so scenes, of the training, validation and test split are disjoint. Training labels are noisy, as
crowd-sourced answers are; validation and test labels are not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.random import RandomState
from sklearn.datasets import load_digits
from torch import Tensor

GRID = 3
CELLS = GRID * GRID
CELL_PIXELS = 8
CELL_SIZE = CELL_PIXELS * CELL_PIXELS * 3
QUESTIONS_PER_SCENE = 8
LABEL_NOISE = 0.2  # share of training answers redrawn among the answers to the same kind

DIGITS = ("zero", "one", "two", "three", "four", "five")
COLORS = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.15, 1.0, 0.15),
    "blue": (0.25, 0.35, 1.0),
    "yellow": (1.0, 1.0, 0.1),
}
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
KINDS = ("color", "row", "column")
ANSWERS = (*COLORS, *(f"{row} row" for row in ROWS), *(f"{column} column" for column in COLUMNS))
WORDINGS = {
    "color": ("what color is the {}", "which color has the {}"),
    "row": ("in which row is the {}", "what row has the {}"),
    "column": ("in which column is the {}", "what column has the {}"),
}
QUESTIONS = tuple(
    wording.format(digit) for kind in KINDS for digit in DIGITS for wording in WORDINGS[kind]
)
VOCABULARY = (
    "[PAD]", "[CLS]", "[SEP]", *DIGITS,
    "what", "which", "in", "color", "row", "column", "is", "has", "the",
)  # fmt: skip
LENGTH = 8  # of the longest question, [CLS] and [SEP] included

Split = Literal["train", "val", "test"]
_SPLIT_SEED, _NOISE_SEED = 1234, 4242


@dataclass(frozen=True)
class Pairs:
    """Question-scene pairs; those of one scene are neighbours.

    Attributes:
        scenes: ``(scenes, 9, 192)`` pixels by cell, in [0, 1].
        questions: ``(36, 8)`` word ids of the distinct questions, 0 is padding.
        question_mask: ``(36, 8)``, true for words.
        question: ``(pairs,)`` index into questions.
        scene: ``(pairs,)`` index into scenes.
        answer: ``(pairs,)`` index into ANSWERS.
        kind: ``(pairs,)`` index into KINDS.
    """

    scenes: Tensor
    questions: Tensor
    question_mask: Tensor
    question: Tensor
    scene: Tensor
    answer: Tensor
    kind: Tensor


def load(split: Split, scenes: int) -> Pairs:
    """The first ``scenes`` scenes of a split, the same for everybody; noisy answers in training."""
    scans, digits = split_scans(split)
    random = RandomState({"train": 1, "val": 2, "test": 3}[split])
    by_digit = [np.flatnonzero(digits == digit) for digit in range(len(DIGITS))]
    drawn = [_draw_scene(random, scans, by_digit) for _ in range(scenes)]
    asked = [
        _draw_question(random, placed) for _, placed in drawn for _ in range(QUESTIONS_PER_SCENE)
    ]
    ids = torch.tensor([encode(question) for question in QUESTIONS])
    question, answer, kind = torch.tensor(asked).T.contiguous()
    pairs = Pairs(
        scenes=torch.from_numpy(np.stack([cells for cells, _ in drawn])),
        questions=ids,
        question_mask=ids != 0,
        question=question,
        scene=torch.arange(scenes).repeat_interleave(QUESTIONS_PER_SCENE),
        answer=answer,
        kind=kind,
    )
    return with_noisy_answers(pairs) if split == "train" else pairs


def split_scans(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Scans ``(n, 8, 8)`` in [0, 1] and their digits; no scan is in two splits."""
    scans, digits = load_digits(return_X_y=True)
    order = RandomState(_SPLIT_SEED).permutation(len(scans))
    part = {"train": order[:1000], "val": order[1000:1300], "test": order[1300:]}[split]
    return (scans[part] / 16).astype(np.float32).reshape(-1, CELL_PIXELS, CELL_PIXELS), digits[part]


def colored(scan: np.ndarray, color: str) -> np.ndarray:
    """One cell, ``(8, 8, 3)``."""
    return scan[:, :, None] * np.array(COLORS[color], np.float32)


def _draw_scene(
    random: RandomState, scans: np.ndarray, by_digit: list[np.ndarray]
) -> tuple[np.ndarray, list[tuple[int, int, str]]]:
    """Cells ``(9, 192)``, and what was placed: (cell, digit, colour)."""
    count = random.randint(2, 6)
    cells = random.permutation(CELLS)[:count]
    digits = random.permutation(len(DIGITS))[:count]
    names = list(COLORS)
    placed = [
        (int(c), int(d), names[random.randint(len(names))])
        for c, d in zip(cells, digits, strict=True)
    ]
    image = np.zeros((CELLS, CELL_PIXELS, CELL_PIXELS, 3), np.float32)
    for cell, digit, color in placed:
        image[cell] = colored(scans[random.choice(by_digit[digit])], color)
    return image.reshape(CELLS, CELL_SIZE), placed


def _draw_question(random: RandomState, placed: list[tuple[int, int, str]]) -> tuple[int, int, int]:
    """Indices of a question, its answer and its kind."""
    cell, digit, color = placed[random.randint(len(placed))]
    kind = KINDS[random.randint(len(KINDS))]
    wording = WORDINGS[kind][random.randint(2)]
    row, column = divmod(cell, GRID)
    answer = {"color": color, "row": f"{ROWS[row]} row", "column": f"{COLUMNS[column]} column"}[
        kind
    ]
    question = QUESTIONS.index(wording.format(DIGITS[digit]))
    return question, ANSWERS.index(answer), KINDS.index(kind)


def with_noisy_answers(pairs: Pairs) -> Pairs:
    """One answer in five is that of another pair of the same kind, from a generator of its own."""
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    noisy = pairs.answer.clone()
    for kind in range(len(KINDS)):
        (of_kind,) = torch.nonzero(pairs.kind == kind, as_tuple=True)
        redrawn = of_kind[torch.rand(len(of_kind), generator=generator) < LABEL_NOISE]
        donors = of_kind[torch.randint(len(of_kind), (len(redrawn),), generator=generator)]
        noisy[redrawn] = pairs.answer[donors]
    return replace(pairs, answer=noisy)


def encode(question: str) -> list[int]:
    """Word ids with [CLS] and [SEP], padded to LENGTH."""
    words = ["[CLS]", *question.split(), "[SEP]"]
    return [VOCABULARY.index(word) for word in words] + [0] * (LENGTH - len(words))


def image_of(cells: Tensor) -> np.ndarray:
    """A scene's cells ``(9, 192)`` as a picture ``(24, 24, 3)``."""
    grid = cells.reshape(GRID, GRID, CELL_PIXELS, CELL_PIXELS, 3).permute(0, 2, 1, 3, 4)
    return grid.reshape(GRID * CELL_PIXELS, GRID * CELL_PIXELS, 3).numpy()
