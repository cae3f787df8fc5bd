"""A small fusion teacher, its examples one by one, and batches of them for a signal cache."""

from __future__ import annotations

import torch
from torch import Tensor

import distillkit as dk
from tests.support import tiny

ATTENTION = {"loss": "attention_kl", "on": "attention.text_to_image"}
LOGITS = {"loss": "kl_divergence", "on": "logits"}
FUSION_TABLES = {**tiny.FUSION_TABLES, "hidden": {"joint": "encoder.blocks.*"}}
DUAL_TABLES = {
    **tiny.DUAL_TABLES,
    "hidden": {"text": "text.blocks.*", "image": "image.blocks.*"},
    "embedding": {"text": "module:head", "image": "logits"},
}


def recipe_of(*terms: dict) -> dk.Recipe:
    return dk.Recipe(name="test", terms=list(terms))


def examples(count: int = 6, *, seed: int = 0, shortest: int = 2) -> list[dict]:
    """Texts of 2 to 5 tokens, without padding, images and labels; each with its id."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        words = shortest + i % (6 - shortest)
        made.append(
            {
                "id": f"x{i}",
                "ids": torch.randint(1, 10, (words,), generator=generator),
                "pixels": torch.randn(4, 6, generator=generator),
                "labels": int(torch.randint(3, (), generator=generator)),
            }
        )
    return made


def collate(some: list[dict], length: int = 0, *, left: bool = False, fill: int = 0) -> dict:
    """A batch, padded to its longest text, or further."""
    longest = max([length, *(len(one["ids"]) for one in some)])
    ids = torch.full((len(some), longest), fill)
    mask = torch.zeros((len(some), longest), dtype=torch.bool)
    for row, marks, one in zip(ids, mask, some, strict=True):
        n = len(one["ids"])
        there = slice(longest - n, None) if left else slice(0, n)
        row[there], marks[there] = one["ids"], True
    return {
        "id": [one["id"] for one in some],
        "ids": ids,
        "mask": mask,
        "pixels": torch.stack([one["pixels"] for one in some]),
        "labels": torch.tensor([one["labels"] for one in some]),
    }


def in_batches(some: list[dict], size: int, **padding) -> list[dict]:
    return [collate(some[i : i + size], **padding) for i in range(0, len(some), size)]


def teacher(seed: int = 1, model: type = tiny.Fusion, **changes) -> dk.Backbone:
    torch.manual_seed(seed)
    return dk.Backbone(model(**changes), adapter_of(model))


def adapter_of(model: type) -> dk.DeclarativeAdapter:
    return dk.DeclarativeAdapter(**(FUSION_TABLES if model is tiny.Fusion else DUAL_TABLES))


def student(seed: int = 2) -> tiny.Dual:
    torch.manual_seed(seed)
    return tiny.Dual()


def distiller_of(taught, recipe, seed: int = 2, **changes) -> dk.Distiller:
    """Of the same student each time; the teacher is a backbone, a cache or None."""
    made = student(seed)
    if isinstance(taught, dk.Backbone):
        changes["teacher_adapter"] = adapter_of(type(taught.model))
        taught = taught.model
    torch.manual_seed(seed)  # of aligners
    return dk.Distiller(
        made,
        taught,
        recipe,
        student_adapter=dk.DeclarativeAdapter(**DUAL_TABLES),
        **{"ignore": ["labels", "id"], **changes},
    )


def filled(place, recipe, some: list[dict], *, size: int = 4, taught=None, **changes):
    """A cache of these examples."""
    cache = dk.SignalCache(place, recipe, **changes)
    cache.fill(taught or teacher(), in_batches(some, size), progress=False)
    return cache


def gradients(distiller: dk.Distiller) -> dict[str, Tensor]:
    named = {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}
    assert named
    return {name: grad.clone() for name, grad in named.items()}
