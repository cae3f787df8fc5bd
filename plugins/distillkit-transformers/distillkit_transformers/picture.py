"""Images of examples: their sizes, and which part of each a processor shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
