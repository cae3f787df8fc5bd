"""From texts and images to one flat batch for two models that see them differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import distillkit as dk


class Collator:
    """Texts and images through the processors of student and teacher, with every token's extent.

    With one processor, the batch holds its entries under their own names. With two, each side's
    stand under ``student_`` and ``teacher_``, where the distiller looks for them first. Beside what
    the processors return there are ``offset_mapping`` (b, n, 2), the characters of every token, and
    ``image_boxes`` (b, 4), the part of every raw image that is shown: what the aligner ``overlap``
    needs.

    Args:
        student: a processor with a fast ``tokenizer`` and an ``image_processor`` that prepare text
            and image apart (CLIP, SigLIP, ViLT, BLIP, FLAVA, BridgeTower,
            VisionTextDualEncoder ...).
        teacher: the teacher's, where it is another.
        text: the key of an example's text.
        image: the key of its image.
        max_length: cut texts after this many tokens; None: after what each tokenizer says.

    Every other key of the examples becomes an entry, stacked into a tensor where it can be.

    Raises:
        ValueError: a processor that writes image tokens into the text, or a slow tokenizer.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any = None,
        *,
        text: str = "text",
        image: str = "image",
        max_length: int | None = None,
    ) -> None:
        self._sides = {"": student}
        if teacher is not None:
            self._sides = {"student_": student, "teacher_": teacher}
        self._text, self._image, self._max_length = text, image, max_length
        for prefix, processor in self._sides.items():
            _check_processor(prefix.strip("_") or "student", processor)

    @property
    def columns(self) -> tuple[str, str]:
        """The keys of an example that it reads itself, for a Trainer that drops unused ones."""
        return self._text, self._image

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch of these examples."""
        texts = [str(example[self._text]) for example in examples]
        images = [example[self._image] for example in examples]
        batch: dict[str, Any] = {}
        for prefix, processor in self._sides.items():
            for name, value in self._side(processor, texts, images).items():
                batch[f"{prefix}{name}"] = value
        for name in examples[0]:
            if name not in (self._text, self._image):
                batch[name] = _stacked([example[name] for example in examples])
        return batch

    def _side(self, processor: Any, texts: list[str], images: list[Any]) -> dict[str, Any]:
        words = processor.tokenizer(
            texts,
            padding=True,
            truncation=self._max_length is not None or _limit(processor.tokenizer) is not None,
            max_length=self._max_length or _limit(processor.tokenizer),
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        pictures = processor.image_processor(images, return_tensors="pt")
        sizes = torch.tensor([size_of(image) for image in images])
        return {
            **words,
            **pictures,
            "offset_mapping": without_spaces(words["offset_mapping"], texts),
            "image_boxes": shown_boxes(processor.image_processor, sizes),
        }


def without_spaces(offsets: Tensor, texts: Sequence[str]) -> Tensor:
    """Character intervals that neither start nor end with white space.

    Tokenizers differ in whether a word's piece owns the space before it; what two of them share
    are the words.

    Args:
        offsets: ``(b, n, 2)``, as a fast tokenizer returns them.
        texts: the b texts.
    """
    trimmed = offsets.clone()
    for row, text in zip(trimmed, texts, strict=True):
        for token, (start, stop) in enumerate(row.tolist()):
            piece = text[start:stop]
            left = len(piece) - len(piece.lstrip())
            right = len(piece) - len(piece.rstrip())
            if left or right:
                end = stop - right if left < len(piece) else start + left
                row[token] = torch.tensor([start + left, max(end, start + left)])
    return trimmed


def shown_boxes(image_processor: Any, sizes: Tensor) -> Tensor:
    """Which part of each raw image a processor shows.

    Args:
        image_processor: it may resize to a size or by the shortest edge, and crop the centre.
        sizes: height and width ``(b, 2)`` of the raw images.

    Returns:
        ``(b, 4)``: top, left, bottom, right as fractions of the raw image. Beyond 0 and 1 where the
        crop is larger than the image and pads it.
    """
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(len(sizes), 1)
    if not getattr(image_processor, "do_center_crop", False):
        return boxes
    resized = torch.stack([_resized(image_processor, size) for size in sizes])
    crop = _edges(image_processor.crop_size, "crop_size")
    start = ((resized - crop) / 2).floor()
    return torch.cat([start / resized, (start + crop) / resized], 1)


def size_of(image: Any) -> tuple[int, int]:
    """Height and width of a PIL image, an array ``(h, w[, c])`` or a tensor ``(c, h, w)``."""
    if isinstance(image, Tensor):
        return int(image.shape[-2]), int(image.shape[-1])
    if hasattr(image, "shape"):
        return int(image.shape[0]), int(image.shape[1])
    return int(image.height), int(image.width)


def _resized(image_processor: Any, size: Tensor) -> Tensor:
    """What an image's height and width are before the crop."""
    if not getattr(image_processor, "do_resize", False):
        return size.float()
    wanted = image_processor.size
    shortest = wanted.get("shortest_edge") if hasattr(wanted, "get") else None
    if not shortest:
        return _edges(wanted, "size")
    height, width = size.tolist()
    scale = shortest / min(height, width)
    # the shortest edge is met exactly, the other is cut to whole pixels
    return torch.tensor([
        float(shortest) if height <= width else float(int(height * scale)),
        float(shortest) if width <= height else float(int(width * scale)),
    ])  # fmt: skip


def _edges(size: Any, what: str) -> Tensor:
    if isinstance(size, int):
        return torch.tensor([float(size), float(size)])
    height, width = size.get("height"), size.get("width")
    edge = size.get("shortest_edge")
    if height is None or width is None:
        if edge is None:
            raise ValueError(f"{what} = {size} is not read: it names no height and width")
        height = width = edge
    return torch.tensor([float(height), float(width)])


def _limit(tokenizer: Any) -> int | None:
    length = int(tokenizer.model_max_length)
    return length if length < 1_000_000 else None  # "very large" stands for "none"


def _stacked(values: list[Any]) -> Any:
    try:
        return torch.stack([torch.as_tensor(value) for value in values])
    except (TypeError, ValueError, RuntimeError):
        return values


def _check_processor(side: str, processor: Any) -> None:
    missing = [name for name in ("tokenizer", "image_processor") if not hasattr(processor, name)]
    if missing:
        raise ValueError(
            f"the {side}'s processor, {type(processor).__name__}, has no {' and no '.join(missing)}"
        )
    if getattr(processor, "image_token", None) is not None:
        raise dk.errors.OptionError(
            f"the {side}'s processor, {type(processor).__name__}, writes image tokens into the "
            "text, which moves its characters: call it yourself and take the offsets of the text"
        )
    if not getattr(processor.tokenizer, "is_fast", False):
        raise dk.errors.OptionError(
            f"the {side}'s tokenizer, {type(processor.tokenizer).__name__}, is a slow one: only "
            "fast tokenizers say which characters a token stands for"
        )
