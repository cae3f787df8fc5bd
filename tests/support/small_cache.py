"""A small cache of a real fusion encoder, and what must be read from it, to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import distillkit as dk
from distillkit._backbone.batch import SideOfBatch
from tests.support import tiny

Batch = dict[str, Any]
Bits = dict[int, bytes]

RECIPE = dk.Recipe(
    name="small",
    terms=[
        {"loss": "kl_divergence", "on": "logits"},
        {"loss": "attention_kl", "on": "attention.text_to_image"},  # as long as the text is
    ],
)
SIGNALS = ("logits", "attention.text_to_image")


def teacher(seed: int = 0) -> dk.Backbone:
    torch.manual_seed(seed)
    return dk.Backbone(tiny.Fusion(), dk.DeclarativeAdapter(**tiny.FUSION_TABLES))


def batches(count: int, size: int = 2) -> list[Batch]:
    """Batches of examples whose names are their numbers."""
    return [
        {**tiny.batch(size, seed=i), "id": list(range(i * size, (i + 1) * size))}
        for i in range(count)
    ]


def only(examples: list[Batch]) -> Batch:
    """For a loader of batches that were made before."""
    (batch,) = examples
    return batch


def fill(cache: dk.SignalCache, loader: Iterable[Batch], **options: Any) -> Any:
    return cache.fill(teacher(), loader, progress=False, **options)


def undisturbed(place: Path, loader: Iterable[Batch]) -> Bits:
    """What a cache gives that nothing befell: to the bit the same as any other, and the teacher's.

    Attention is stored as log-probabilities, so that its last bit may be another than the model's.
    """
    cache = dk.SignalCache(place, RECIPE)
    fill(cache, loader)
    backbone = teacher()
    backbone.model.eval()
    for batch in loader:
        with torch.no_grad():
            computed = backbone.signals(SideOfBatch(batch, "teacher"))
        read_back = cache.signals(batch)
        assert torch.equal(read_back["logits"], computed["logits"])
        mine, its = (x["attention.text_to_image"][-1] for x in (read_back, computed))
        assert torch.equal(mine.valid_rows(), its.valid_rows())
        torch.testing.assert_close(mine.probabilities(), its.probabilities(), rtol=0, atol=1e-7)
    return read(cache, loader)


def bits(signals: dk.Signals, keys: Iterable[int]) -> Bits:
    """Every number that a loss could read, for each example."""
    found = dict.fromkeys(keys, b"")
    for tensor in _tensors(signals):
        for key, one in zip(found, tensor, strict=True):
            found[key] += one.contiguous().numpy().tobytes()
    return found


def _tensors(signals: dk.Signals) -> Iterator[Tensor]:
    for name in SIGNALS:
        value = signals[name]
        if isinstance(value, Tensor):
            yield value
            continue
        attention = value if isinstance(value, dk.Attention) else value[-1]
        yield attention.probabilities()
        yield attention.valid_rows().expand(attention.shape[:3])


def read(cache: dk.SignalCache, loader: Iterable[Batch]) -> Bits:
    """What a cache gives for batches."""
    found: Bits = {}
    for batch in loader:
        found |= bits(cache.signals(batch), batch["id"])
    return found


def stored(cache: dk.SignalCache, loader: Iterable[Batch]) -> list[Batch]:
    """The examples that are there, each as a batch of its own with the padding of its batch."""
    found = []
    for batch in loader:
        for i, key in enumerate(batch["id"]):
            if key in cache:
                found.append({name: x[i : i + 1] for name, x in batch.items()})
    return found


def unfinished(place: Path) -> list[str]:
    """Files that nobody is to find."""
    return sorted(one.name for one in place.glob(".unfinished*"))


def shards(place: Path) -> list[Path]:
    return sorted(place.glob("*.safetensors"))
