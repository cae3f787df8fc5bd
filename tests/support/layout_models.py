"""Small models that see pictures: towers that mix their patches and towers that do not.

An architecture and a tower make a model; ``right(...)`` gives it with a batch and the adapter that
tells the truth about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import distillkit as dk

from . import tiny

SIDE, PATCH = 8, 2  # 4 x 4 patches
PLACEHOLDER = 9
INPUTS = {"ids": "ids", "mask": "mask", "pictures": "pictures"}
TEXT = {"modality": "text", "length": "ids", "mask": "mask", "special": [0]}
IMAGE = {"modality": "image", "grid": [4, 4], "uncropped": True}


class Local(nn.Module):
    """One convolution: no patch knows of another."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, tiny.WIDTH, PATCH, PATCH)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.cut(pictures).flatten(2).mT


class Overlapping(Local):
    """Two convolutions that see beyond their patch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        return super().forward(self.stem(pictures))


class Attending(Local):
    """Two layers of attention among the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = tiny.Encoder()

    def forward(self, pictures: Tensor) -> Tensor:
        x = super().forward(pictures)
        return self.encoder(x, torch.ones(x.shape[:2], dtype=torch.bool))


class Mixing(Local):
    """Every patch is a sum of all, and no attention says so."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.mix(super().forward(pictures).mT).mT


TOWERS = {"local": Local, "overlapping": Overlapping, "attending": Attending, "mixing": Mixing}


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, tiny.WIDTH)
        self.places = nn.Embedding(48, tiny.WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.places.weight[: ids.shape[1]]


class Seeing(nn.Module):
    """What all of them have: words, a tower and perhaps tokens around its patches."""

    def __init__(self, tower: str, *, first: bool = False, last: bool = False) -> None:
        super().__init__()
        self.words, self.tower = Words(), TOWERS[tower]()
        self.first = nn.Parameter(torch.randn(1, 1, tiny.WIDTH)) if first else None
        self.last = nn.Parameter(torch.randn(1, 1, tiny.WIDTH)) if last else None
        self.head = nn.Linear(tiny.WIDTH, 3)

    def patches(self, pictures: Tensor) -> Tensor:
        if pictures.ndim == 5:
            x = self.tower(pictures.flatten(0, 1)).reshape(len(pictures), -1, tiny.WIDTH)
        else:
            x = self.tower(pictures)
        around = [None if p is None else p.expand(len(x), 1, -1) for p in (self.first, self.last)]
        parts = [around[0], x, around[1]]
        return torch.cat([part for part in parts if part is not None], 1)


class Fusion(Seeing):
    """Words, then patches, in one sequence."""

    streams: ClassVar = {"joint": "encoder.blocks.*"}

    def __init__(self, tower: str, **around: bool) -> None:
        super().__init__(tower, **around)
        self.encoder = tiny.Encoder(tiny.EagerAttention)

    def forward(self, ids: Tensor, mask: Tensor, pictures: Tensor) -> tiny.Output:
        patches = self.patches(pictures)
        x = torch.cat([self.words(ids), patches], 1)
        seen = torch.cat([mask, mask.new_ones(patches.shape[:2])], 1)
        return tiny.Output(self.head(self.encoder(x, seen)[:, 0]))


class Decoder(Fusion):
    """Patches where a placeholder stands among the words."""

    def forward(self, ids: Tensor, mask: Tensor, pictures: Tensor) -> tiny.Output:
        patches = self.patches(pictures)
        where = (ids == PLACEHOLDER)[..., None]
        x = self.words(ids).masked_scatter(where, patches)
        return tiny.Output(self.head(self.encoder(x, mask)[:, 0]))


class Dual(Seeing):
    """Two towers."""

    streams: ClassVar = {"text": "text.blocks.*", "image": "image.blocks.*"}

    def __init__(self, tower: str, **around: bool) -> None:
        super().__init__(tower, **around)
        self.text, self.image = tiny.Encoder(), tiny.Encoder()

    def forward(self, ids: Tensor, mask: Tensor, pictures: Tensor) -> tiny.Output:
        patches = self.patches(pictures)
        image = self.image(patches, mask.new_ones(patches.shape[:2]))
        text = self.text(self.words(ids), mask)
        return tiny.Output(self.head(text[:, 0]) + self.head(image[:, 0]).mean(0))


class Crossing(nn.Module):
    """Words that look at patches."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(tiny.WIDTH, tiny.WIDTH) for _ in "qkv")

    def forward(self, x: Tensor, patches: Tensor) -> Tensor:
        q, k, v = (
            one.view(*one.shape[:2], tiny.HEADS, -1).transpose(1, 2)
            for one in (self.query(x), self.key(patches), self.value(patches))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + mixed.transpose(1, 2).flatten(2)


class Cross(Seeing):
    """Words whose queries read the patches' keys."""

    streams: ClassVar = {"text_to_image": "cross.*"}

    def __init__(self, tower: str, **around: bool) -> None:
        super().__init__(tower, **around)
        self.cross = nn.ModuleList(Crossing() for _ in "ab")

    def forward(self, ids: Tensor, mask: Tensor, pictures: Tensor) -> tiny.Output:
        x, patches = self.words(ids) * mask[..., None], self.patches(pictures)
        for cross in self.cross:
            x = cross(x, patches)
        return tiny.Output(self.head(x[:, 0]))


MODELS = {"fusion": Fusion, "decoder": Decoder, "dual": Dual, "cross": Cross}


def batch(
    model: str, *, count: int = 16, left: bool = False, pictures: int = 0
) -> dict[str, Tensor]:
    """Three texts of unequal length, each with its [CLS], and pictures."""
    lengths = torch.tensor([[5], [4], [6]])
    place = torch.arange(6)
    real = place >= 6 - lengths if left else place < lengths
    ids = torch.tensor([[3, 4, 5, 6, 7, 3], [7, 5, 3, 3, 4, 6], [4, 6, 6, 5, 3, 7]])
    first = real & (real.long().cumsum(1) == 1)
    ids = torch.where(first, 1, ids) * real
    if model == "decoder":
        marks = torch.full((3, count), PLACEHOLDER)
        ids = torch.cat([ids[:, :2], marks, ids[:, 2:]], 1)
        real = torch.cat([real[:, :2], marks > 0, real[:, 2:]], 1)
    shape = (3, pictures, 3, SIDE, SIDE) if pictures else (3, 3, SIDE, SIDE)
    seen = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    return {"ids": ids, "mask": real, "pictures": seen}


def tables(model: str, image: dict[str, Any] | list[dict[str, Any]], text: dict[str, Any]) -> Any:
    """The adapter file of a model."""
    runs = image if isinstance(image, list) else [image]
    if model == "decoder":
        marked = [{**run, "where": "ids", "equals": PLACEHOLDER} for run in runs]
        tokens = {"joint": [*marked, text]}
    elif model == "fusion":
        tokens = {"joint": [text, *runs]}
    else:
        tokens = {"text": [text], "image": runs}
    if model == "cross":  # its keys have no padding, and neither have its queries
        tokens["text"] = [{**text, "unmasked": True}]
    return {"inputs": INPUTS, "streams": MODELS[model].streams, "logits": "logits",
            "tokens": tokens}  # fmt: skip


def right(
    model: str,
    tower: str,
    image: dict[str, Any] | list[dict[str, Any]] = IMAGE,
    *,
    text: dict[str, Any] = TEXT,
    around: dict[str, bool] | None = None,
    **of_batch: Any,
) -> Callable[[], tuple[Any, ...]]:
    """A factory of the model, a batch and the adapter that tells the truth."""

    def factory() -> tuple[Any, ...]:
        made = MODELS[model](tower, **(around or {}))
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if parameter.ndim == 2 and ("qkv" in name or "query" in name or "key" in name):
                    parameter.mul_(4)  # attention of fresh models is even
        adapter = dk.DeclarativeAdapter(**tables(model, image, text))
        return made, batch(model, **of_batch), adapter

    factory.__name__ = f"{model}_{tower}"
    return factory


BY_ID = {"modality": "text", "length": "ids", "mask": "mask", "special_ids": [1]}
TWO = {**IMAGE, "images": 2}
TILES = [
    {**IMAGE, "uncropped": False, "box": [0, 0, 1, 0.5]},
    {**IMAGE, "uncropped": False, "box": [0, 0.5, 1, 1]},
]

RIGHT: dict[str, Callable[[], tuple[Any, ...]]] = {}
for _model in MODELS:
    for _tower in TOWERS:
        RIGHT[f"{_model}, {_tower}"] = right(_model, _tower)
    RIGHT[f"{_model}, a token before"] = right(
        _model, "local", {**IMAGE, "special": [0]}, around={"first": True}, count=17
    )
    RIGHT[f"{_model}, a token behind"] = right(
        _model, "attending", {**IMAGE, "special": [-1]}, around={"last": True}, count=17
    )
    RIGHT[f"{_model}, special by id"] = right(_model, "local", text=BY_ID, left=True)
    RIGHT[f"{_model}, two images"] = right(_model, "local", TWO, count=32, pictures=2)
    RIGHT[f"{_model}, two tiles"] = right(_model, "attending", TILES, count=32, pictures=2)
    RIGHT[f"{_model}, frames"] = right(
        _model, "local", {**IMAGE, "frames": 2}, count=32, pictures=2
    )
