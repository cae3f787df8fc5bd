"""VQA's answers of ten people as scores of every class, and the metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import OptionError

SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
"""The score of an answer that so many people gave; the last of four or more."""


def answer_scores(answers: Iterable[str], known: Mapping[str, int]) -> Tensor:
    """The score of every known answer, ``(classes,)``.

    Args:
        answers: what each person answered.
        known: answer -> class; ``label2id`` of the teacher.

    Examples:
        >>> votes = ["yes"] * 3 + ["no"] * 6 + ["maybe"]
        >>> answer_scores(votes, {"yes": 0, "no": 1, "two": 2})
        tensor([0.9000, 1.0000, 0.0000])
    """
    scores = torch.zeros(len(known))
    for answer, votes in Counter(answers).items():
        if answer in known:
            scores[known[answer]] = SCORES[min(votes, len(SCORES) - 1)]
    return scores


def votes_of(row: Mapping[str, Any] | Sequence[Any]) -> list[str]:
    """The answers of a row of a data set: texts, or what has them under ``answer``.

    Examples:
        >>> votes_of([{"answer": "yes", "answer_id": 1}, {"answer": "no", "answer_id": 2}])
        ['yes', 'no']
        >>> votes_of({"answer": ["yes", "no"], "answer_id": [1, 2]})
        ['yes', 'no']
    """
    if isinstance(row, Mapping):
        row = row["answer"]
    return [one["answer"] if isinstance(one, Mapping) else str(one) for one in row]


def vqa_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """The score of each example's first answer, ``(b,)``.

    Args:
        logits: ``(b, classes)``.
        targets: ``(b, classes)``, as :func:`answer_scores` makes them.

    Examples:
        >>> vqa_scores(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([[0, 0.9], [0.3, 1]]))
        tensor([0.9000, 0.3000])
    """
    return targets.gather(1, logits.argmax(1, keepdim=True))[:, 0]


def split_by_image(images: Sequence[Any], last: int) -> tuple[list[int], list[int]]:
    """The rows of all images but the last ones, and the rows of those, by first appearance.

    Args:
        images: the image of every row.
        last: how many images are held out.

    Raises:
        OptionError: as many images as there are, or more.

    Examples:
        >>> split_by_image(["a", "a", "b", "c", "b"], last=2)
        ([0, 1], [2, 3, 4])
    """
    order = list(dict.fromkeys(images))
    if last >= len(order):
        raise OptionError(f"{last} images are to be held out of {len(order)}")
    held = set(order[len(order) - last :])
    kept = [i for i, image in enumerate(images) if image not in held]
    return kept, [i for i, image in enumerate(images) if image in held]
