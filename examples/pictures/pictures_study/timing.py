"""What answers cost: every text with every scene, with encodings reused and not."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from .batches import Examples
from .models import DualEncoder, FusionEncoder

AT_ONCE = 512  # pairs in one forward
WAYS = (
    "fusion encoder, every pair",
    "dual encoder, nothing reused",
    "dual encoder, each side encoded once",
    "dual encoder, both sides stored",
)


@torch.no_grad()
def inference_seconds(
    fusion: FusionEncoder,
    dual: DualEncoder,
    examples: Examples,
    scenes: int,
    texts: int,
    repeats: int,
) -> dict[str, float]:
    """CPU seconds for the first texts about the scenes of the first examples, each with each.

    In eval mode, many pairs in a forward; the best of ``repeats`` rounds, in each of which every
    way has its turn.
    """
    fusion.eval()
    dual.eval()
    words = examples.words[:texts]
    mask = words > 0
    shown = examples.scenes[:scenes]  # (s, 1 or 2, c)
    each = shown.shape[1]
    cells = examples.vectors[shown.flatten(0, 1)]
    place = torch.arange(each).repeat(len(shown))
    example, text = torch.cartesian_prod(torch.arange(len(shown)), torch.arange(len(words))).T
    image = example[:, None] * each + torch.arange(each)  # (p, 1 or 2)
    chunks = list(zip(text.split(AT_ONCE), image.split(AT_ONCE), strict=True))

    def pairs(text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return text.repeat_interleave(each), image.flatten()

    def fused() -> None:
        for chunk in chunks:
            fusion(words, mask, cells, place, *pairs(*chunk))

    def encoded_for_each_pair() -> None:
        for chunk in chunks:
            t, i = pairs(*chunk)
            dual.answer(dual.text(words[t], mask[t]), dual.image(cells[i], place[i]))

    def heads(read: Tensor, seen: Tensor) -> None:
        for chunk in chunks:
            t, i = pairs(*chunk)
            dual.answer(read[t], seen[i])

    def encoded_once() -> None:
        heads(dual.text(words, mask), dual.image(cells, place))

    read, seen = dual.text(words, mask), dual.image(cells, place)
    functions = fused, encoded_for_each_pair, encoded_once, lambda: heads(read, seen)
    rounds = [[_timed(way) for way in functions] for _ in range(repeats)]
    best = map(min, zip(*rounds, strict=True))
    return {way: float(f"{seconds:.4g}") for way, seconds in zip(WAYS, best, strict=True)}


def _timed(way: Callable[[], None]) -> float:
    """Of the processor: what else runs on the machine does not count."""
    start = time.process_time()
    way()
    return time.process_time() - start
