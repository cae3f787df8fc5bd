"""What an answer costs: N scenes x M questions, with encodings reused and not."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from data import Pairs
from models import DualEncoder, FusionEncoder


@torch.no_grad()
def inference_seconds(
    fusion: FusionEncoder, dual: DualEncoder, pairs: Pairs, scenes: int, repeats: int = 3
) -> dict[str, float]:
    """Seconds for every question about each of the first ``scenes`` scenes, on one thread.

    The best of ``repeats`` runs, scene by scene as a server would, in eval mode.
    """
    fusion.eval()
    dual.eval()
    questions, mask = pairs.questions, pairs.question_mask
    images = pairs.scenes[:scenes]
    every, first = torch.arange(len(questions)), torch.zeros(len(questions), dtype=torch.long)

    def fused() -> None:
        for image in images:
            fusion(questions, mask, image[None], every, first)

    def encoded_once() -> None:
        heads(dual.text(questions, mask), dual.image(images))

    def encoded_for_each_pair() -> None:
        for image in images:
            dual(questions, mask, image.expand(len(questions), -1, -1), every, every)

    def heads(texts: torch.Tensor, encoded: torch.Tensor) -> None:
        for image in encoded:
            dual.answer(texts, image.expand_as(texts))

    texts, encoded = dual.text(questions, mask), dual.image(images)
    ways: dict[str, Callable[[], None]] = {
        "fusion encoder, every pair": fused,
        "dual encoder, nothing reused": encoded_for_each_pair,
        "dual encoder, each side encoded once": encoded_once,
        "dual encoder, both sides stored": lambda: heads(texts, encoded),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: min(_timed(way) for _ in range(repeats)) for name, way in ways.items()}
    finally:
        torch.set_num_threads(threads)


def _timed(way: Callable[[], None]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start
