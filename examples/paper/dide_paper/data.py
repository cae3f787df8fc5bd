"""Rows of a data set as examples of a task: columns by name, pictures decoded."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from distillkit.errors import OptionError

from .answers import answer_scores, votes_of
from .labels import KNOWN_ORDERS, class_numbers

COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "vqa": {"text": ("question",), "image": ("image",), "answers": ("answers",)},
    "ve": {
        "text": ("sentence", "hypothesis"), "image": ("image",), "label": ("gold_label", "label"),
    },
    "nlvr2": {
        "text": ("sentence", "question"), "image": ("images", "left_image,right_image"),
        "label": ("label", "answer"),
    },
    "retrieval": {"text": ("caption", "captions", "sentences"), "image": ("image",)},
    "pretraining": {"text": ("caption", "captions", "sentences"), "image": ("image",)},
}  # fmt: skip
"""Task -> what is read -> the columns that may hold it; two names, "a,b", are two columns."""


def open_data(source: str, split: str, config: str | None = None) -> Any:
    """A data set by the name on the Hub or the folder of its Parquet files.

    Raises:
        OptionError: ``datasets`` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise OptionError(
            "data sets are read by the library datasets: pip install 'distillkit[paper]'"
        ) from None
    return datasets.load_dataset(source, config, split=split)


def columns_of(
    task: str, there: Sequence[str], given: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """What is read -> the columns that hold it.

    Args:
        task: a task's name.
        there: the columns that there are.
        given: what is read -> column, or "left,right", for data whose names are not known here.

    Raises:
        OptionError: a column that is not there; something that no column holds.
    """
    given = given or {}
    wanted = COLUMNS[task]
    if unknown := sorted(given.keys() - wanted.keys()):
        raise OptionError(f"the task {task!r} reads {', '.join(wanted)}, not {', '.join(unknown)}")
    found: dict[str, tuple[str, ...]] = {}
    for role, names in wanted.items():
        choices = (given[role],) if role in given else names
        fitting = [tuple(c.split(",")) for c in choices if set(c.split(",")) <= set(there)]
        if not fitting:
            raise OptionError(
                f"the task {task!r} reads its {role} from {' or '.join(map(repr, choices))}; the "
                f"data has {', '.join(there)}: say which, --columns {role}=NAME"
            )
        found[role] = fitting[0]
    return found


def picture(value: Any) -> Image.Image:
    """An image of a row, decoded: a picture, its bytes, or where it is.

    Raises:
        OptionError: nothing of these.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        value = Image.open(io.BytesIO(value))
    elif isinstance(value, str):
        value = Image.open(value)
    if not isinstance(value, Image.Image):
        raise OptionError(f"an image is a picture, bytes or a path; got {type(value).__name__}")
    return value.convert("RGB")


def captions_of(value: Any) -> list[str]:
    """The captions of a row: one, several, or what has them under ``raw``.

    Examples:
        >>> captions_of("a cat"), captions_of([{"raw": "a cat"}]), captions_of({"raw": ["a cat"]})
        (['a cat'], ['a cat'], ['a cat'])
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return captions_of(value["raw"])
    return [one["raw"] if isinstance(one, Mapping) else str(one) for one in value]


def label_order(source: str, data: Any, column: str) -> tuple[str, ...] | None:
    """The names of a column's classes in their order; None: nothing numbers them, or says it."""
    features = getattr(data, "features", None) or {}
    names = getattr(features.get(column), "names", None)
    return tuple(names) if names else KNOWN_ORDERS.get(source)


class Examples(torch.utils.data.Dataset):
    """The examples of a task with labels: texts, pictures, labels in the teacher's order.

    Args:
        task: ``"vqa"``, ``"ve"`` or ``"nlvr2"``.
        rows: a data set, or any sequence of rows.
        columns: as :func:`columns_of` returns them.
        classes: the names of the teacher's classes, in its order.
        order: the names of the data's classes, where it numbers them.
        key: what the rows' numbers are told apart by from those of other data.
    """

    def __init__(
        self,
        task: str,
        rows: Any,
        columns: Mapping[str, tuple[str, ...]],
        classes: Sequence[str],
        order: Sequence[str] | None = None,
        key: str = "",
    ) -> None:
        self.task, self.rows, self.columns, self.key = task, rows, columns, key
        self.classes, self.order = tuple(classes), order
        self._known = {name: place for place, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        images = [row[name] for name in self.columns["image"]]
        if self.task == "nlvr2" and len(images) == 1:
            images = list(images[0])
        found = {
            "id": f"{self.key}{index}",
            "text": row[self.columns["text"][0]],
            "images": [picture(image) for image in images],
        }
        if self.task == "vqa":
            found["labels"] = answer_scores(votes_of(row[self.columns["answers"][0]]), self._known)
        else:
            label = row[self.columns["label"][0]]
            found["labels"] = class_numbers([label], self.classes, self.order)[0]
        return found


class Captioned(torch.utils.data.Dataset):
    """Images with their captions: one of each image's own, drawn anew each time, and false ones.

    Args:
        rows: a data set, or any sequence of rows.
        columns: as :func:`columns_of` returns them.
        captions: the captions of every row.
        false: how many captions of other images follow the true one.
        hard: for each row the captions, ``(row, number)``, to draw false ones from; None: all of
            the other images.
    """

    def __init__(
        self,
        rows: Any,
        columns: Mapping[str, tuple[str, ...]],
        captions: Sequence[Sequence[str]],
        false: int = 0,
        hard: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        self.rows, self.columns, self.captions = rows, columns, captions
        self.false, self.hard = false, hard
        if false and len(captions) < 2:
            raise OptionError("false captions are those of other images; there is one image")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        own = self.captions[index]
        false = [self.captions[row][number] for row, number in self._false(index)]
        texts = [own[_draw(len(own))], *false]
        image = picture(self.rows[index][self.columns["image"][0]])
        return {"texts": texts, "images": [image]}

    def _false(self, index: int) -> list[tuple[int, int]]:
        if self.hard is not None:
            known = self.hard[index]
            if len(known) < self.false:
                raise OptionError(
                    f"row {index} has {len(known)} hard captions, and {self.false} are needed"
                )
            return [known[i] for i in torch.randperm(len(known))[: self.false].tolist()]
        found = []
        for _ in range(self.false):
            row = _draw(len(self.captions) - 1)
            row += row >= index  # any image but its own
            found.append((row, _draw(len(self.captions[row]))))
        return found


def _draw(count: int) -> int:
    return int(torch.randint(count, ()))
