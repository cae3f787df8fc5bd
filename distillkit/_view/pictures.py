"""Images as what a page can hold: PNG of small ones, JPEG of photographs where Pillow is there."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import OptionError, ShapeError, SignalError

Pixels: TypeAlias = NDArray[np.uint8]
"""``(h, w, 3)``."""

LARGEST = 256  # pixels of a side; more is not seen at the size of a panel
_SMALL = 96  # below it every pixel matters, as those of digits do

_IMAGES = (
    "images= is one image for each example, or a list of several: arrays (h, w), (h, w, 1) or "
    "(h, w, 3), tensors (c, h, w), or PIL images; or pixel values (b, c, h, w) or the batch entry "
    "that holds them"
)


class Picture(NamedTuple):
    """One image of the page.

    Attributes:
        source: a data URI.
        width: in pixels.
        height: in pixels.
        pixelated: whether it is so small that its pixels are to be seen.
    """

    source: str
    width: int
    height: int
    pixelated: bool


def pictures_of(
    images: Any, examples: int, batch: Mapping[str, Any], denormalise: Any
) -> list[list[Picture]]:
    """The pictures of each example.

    Raises:
        OptionError: pixels outside [0, 1] that nothing brings back.
        ShapeError: what is no image, or not one for each example.
        SignalError: the batch lacks the entry that holds them.
    """
    if isinstance(images, str):
        if images not in batch:
            raise SignalError(
                f"images={images!r} names no entry of the batch; it has "
                f"{', '.join(map(repr, batch)) or 'none: give batch='}"
            )
        images = batch[images]
    if isinstance(images, Tensor) and images.ndim not in (4, 5):
        raise ShapeError(f"{_IMAGES}; got a tensor {tuple(images.shape)}")
    if len(images) != examples:
        raise ShapeError(f"there are {examples} examples, but {len(images)} images; {_IMAGES}")
    scale = None if denormalise is None else _scale_of(denormalise)
    made: dict[bytes, Picture] = {}
    found = []
    for one in images:
        several = one if _is_several(one) else [one]
        found.append([_picture(pixels_of(image, scale), made) for image in several])
    return found


def _is_several(one: Any) -> bool:
    return isinstance(one, list | tuple) or (isinstance(one, Tensor) and one.ndim == 4)


def _picture(pixels: Pixels, made: dict[bytes, Picture]) -> Picture:
    """A picture; one that several examples show is made once."""
    key = struct.pack("<2I", *pixels.shape[:2]) + pixels.tobytes()
    if key not in made:
        shown = _shrunk(pixels)
        h, w, _ = shown.shape
        made[key] = Picture(_data_uri(shown), w, h, pixelated=max(h, w) <= _SMALL)
    return made[key]


def _scale_of(denormalise: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``(c, 1, 1)``, of a pair or of an image processor."""
    pair = denormalise
    if hasattr(denormalise, "image_mean") and hasattr(denormalise, "image_std"):
        pair = (denormalise.image_mean, denormalise.image_std)
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise OptionError(
            "denormalise= is (mean, std), numbers or one for each channel, or an image processor "
            f"that has image_mean and image_std; got {denormalise!r}"
        )
    mean, std = (torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 1) for x in pair)
    return mean, std


def pixels_of(image: Any, scale: tuple[Tensor, Tensor] | None = None) -> Pixels:
    """An image as ``(h, w, 3)`` bytes.

    Args:
        image: an array, a tensor with its channels first, or a PIL image.
        scale: mean and standard deviation that it was normalised by.

    Examples:
        >>> pixels_of(np.array([[0.0, 1.0]])).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    if isinstance(image, Tensor):
        x = image.detach().cpu()
        x = x[None] if x.ndim == 2 else x
    else:
        array = np.array(image)
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.dtype.kind not in "fuib":
            raise ShapeError(f"{_IMAGES}; got {type(image).__name__} {array.shape}")
        x = torch.from_numpy(array).permute(2, 0, 1)
    if x.ndim != 3 or x.shape[0] not in (1, 3, 4) or 0 in x.shape:
        raise ShapeError(
            f"{_IMAGES}; got {type(image).__name__} that is {tuple(x.shape)} with channels first"
        )
    x = x[:3]
    if scale is not None:
        if scale[0].shape[0] not in (1, x.shape[0]):
            raise ShapeError(
                f"denormalise= has {scale[0].shape[0]} channels, an image {x.shape[0]}"
            )
        x = (x.float() * scale[1] + scale[0]).clamp(0, 1)
    if x.dtype == torch.uint8:
        return np.ascontiguousarray(x.expand(3, -1, -1).permute(1, 2, 0).numpy())
    if not x.is_floating_point():
        x = x.float() / (1 if x.dtype == torch.bool else 255)
    low, high = float(x.min()), float(x.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN too
        raise OptionError(
            f"pixels are in [0, 1], or bytes; got numbers from {low:.3g} to {high:.3g}. Those that "
            "a processor normalised are brought back by denormalise=(mean, std) or by "
            "denormalise=processor.image_processor"
        )
    x = (x.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(x.expand(3, -1, -1).permute(1, 2, 0).numpy())


def _shrunk(pixels: Pixels) -> Pixels:
    """At most so many pixels that a panel shows."""
    h, w, _ = pixels.shape
    factor = LARGEST / max(h, w)
    if factor >= 1:
        return pixels
    size = max(1, round(h * factor)), max(1, round(w * factor))
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    x = F.interpolate(x, size, mode="area")[0].permute(1, 2, 0)
    return x.round().to(torch.uint8).numpy()


def _data_uri(pixels: Pixels) -> str:
    if max(pixels.shape[:2]) > _SMALL:
        jpeg = _jpeg(pixels)
        if jpeg is not None:
            return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def _jpeg(pixels: Pixels) -> bytes | None:
    """A photograph in a tenth of the bytes; None: Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError:
        return None
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=85)
    return written.getvalue()


def png(pixels: Pixels) -> bytes:
    """``(h, w, 3)`` bytes as a PNG file, with nothing but the standard library."""
    h, w, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    lines = np.concatenate([np.zeros((h, 1), np.uint8), pixels.reshape(h, 3 * w)], 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", w, h, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + chunk(b"IEND", b"")
    )
