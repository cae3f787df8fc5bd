"""RandAugment(2, 9) without invert and cutout, as ViLT augments pictures, with Pillow alone.

Source: Cubuk et al., *RandAugment*, 2020, https://arxiv.org/abs/1909.13719; the strengths are those
of the implementation that ViLT took: at most 30, spread evenly over each operation's range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageEnhance, ImageOps

MOST = 30
Operation = Callable[[Image.Image, float], Image.Image]


class Range(NamedTuple):
    """An operation and its strengths, from the weakest to the strongest; signed: either way."""

    apply: Operation
    least: float
    most: float
    signed: bool = False


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees)


def _affine(image: Image.Image, *, x: tuple[float, float], y: tuple[float, float]) -> Image.Image:
    """Each is (shear, offset in pixels)."""
    matrix = (1, x[0], x[1], y[0], 1, y[1])
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _solarize_add(image: Image.Image, addition: float) -> Image.Image:
    """Brighten every pixel, then invert what is bright."""
    brighter = [min(255, i + int(addition)) for i in range(256)]
    solarized = [i if i < 128 else 255 - i for i in brighter]
    return image.point(solarized * len(image.getbands()))


def _enhance(kind: type) -> Operation:
    return lambda image, strength: kind(image).enhance(strength)


OPERATIONS = {
    "auto_contrast": Range(lambda image, _: ImageOps.autocontrast(image), 0, 1),
    "equalize": Range(lambda image, _: ImageOps.equalize(image), 0, 1),
    "rotate": Range(_rotate, 0, 30, signed=True),
    "posterize": Range(lambda image, bits: ImageOps.posterize(image, max(1, int(bits))), 0, 4),
    "solarize": Range(lambda image, threshold: ImageOps.solarize(image, int(threshold)), 0, 256),
    "solarize_add": Range(_solarize_add, 0, 110),
    "color": Range(_enhance(ImageEnhance.Color), 0.1, 1.9),
    "contrast": Range(_enhance(ImageEnhance.Contrast), 0.1, 1.9),
    "brightness": Range(_enhance(ImageEnhance.Brightness), 0.1, 1.9),
    "sharpness": Range(_enhance(ImageEnhance.Sharpness), 0.1, 1.9),
    "shear_x": Range(lambda image, v: _affine(image, x=(v, 0), y=(0, 0)), 0, 0.3, signed=True),
    "shear_y": Range(lambda image, v: _affine(image, x=(0, 0), y=(v, 0)), 0, 0.3, signed=True),
    "translate_x": Range(lambda image, v: _affine(image, x=(0, v), y=(0, 0)), 0, 100, signed=True),
    "translate_y": Range(lambda image, v: _affine(image, x=(0, 0), y=(0, v)), 0, 100, signed=True),
}


class RandAugment:
    """So many operations, drawn with replacement, each at one strength.

    Args:
        operations: how many.
        strength: 0 to 30.

    torch's generator draws them, which a DataLoader seeds in every worker.
    """

    def __init__(self, operations: int = 2, strength: float = 9) -> None:
        self.operations, self.strength = operations, strength

    def __call__(self, image: Image.Image) -> Image.Image:
        names = list(OPERATIONS)
        for place in torch.randint(len(names), (self.operations,)).tolist():
            one = OPERATIONS[names[place]]
            value = one.least + (one.most - one.least) * self.strength / MOST
            if one.signed and bool(torch.rand(()) < 0.5):
                value = -value
            image = one.apply(image, value)
        return image


class Augmented(torch.utils.data.Dataset):
    """Examples whose pictures are changed before they are resized, each time anew.

    Args:
        examples: with pictures under ``"images"``.
        change: what becomes of a picture.
    """

    def __init__(self, examples: Any, change: Callable[[Image.Image], Image.Image]) -> None:
        self.examples, self.change = examples, change

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        return {**example, "images": [self.change(image) for image in example["images"]]}
