"""What an answer costs: N scenes x M questions, with encodings reused and not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from data import Pairs
from models import DualEncoder, FusionEncoder

PAIRS_AT_ONCE = 512  # in one forward
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
    pairs: Pairs,
    scenes: int,
    questions: int | None = None,
    repeats: int = 3,
) -> dict[str, float]:
    """Seconds for ``questions`` questions (all) about each of the first ``scenes`` scenes.

    On one thread, in eval mode, many pairs in a forward; the best of ``repeats`` rounds, in each
    of which every way has its turn.
    """
    fusion.eval()
    dual.eval()
    asked, mask = pairs.questions[:questions], pairs.question_mask[:questions]
    images = pairs.scenes[:scenes]
    scene, question = torch.cartesian_prod(
        torch.arange(len(images)), torch.arange(len(asked))
    ).T.contiguous()
    chunks = list(zip(question.split(PAIRS_AT_ONCE), scene.split(PAIRS_AT_ONCE), strict=True))

    def fused() -> None:
        for q, s in chunks:
            of, s = s.unique(return_inverse=True)
            fusion(asked, mask, images[of], q, s)

    def encoded_for_each_pair() -> None:
        for q, s in chunks:
            every = torch.arange(len(q))
            dual(asked[q], mask[q], images[s], every, every)

    def encoded_once() -> None:
        heads(dual.text(asked, mask), dual.image(images))

    def heads(texts: torch.Tensor, encoded: torch.Tensor) -> None:
        for q, s in chunks:
            dual.answer(texts[q], encoded[s])

    texts, encoded = dual.text(asked, mask), dual.image(images)
    functions = fused, encoded_for_each_pair, encoded_once, lambda: heads(texts, encoded)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = [[_timed(way) for way in functions] for _ in range(repeats)]
    finally:
        torch.set_num_threads(threads)
    return dict(zip(WAYS, map(min, zip(*rounds, strict=True)), strict=True))


def throughput(
    depth: int, pairs: Pairs, scenes: Sequence[int], questions: Sequence[int], repeats: int = 3
) -> list[tuple[int, int, dict[str, float]]]:
    """(N, M, seconds of each way) over a grid, with untrained models of ``depth`` blocks."""
    torch.manual_seed(0)
    fusion, dual = FusionEncoder(depth), DualEncoder(depth)
    return [
        (n, m, inference_seconds(fusion, dual, pairs, n, m, repeats))
        for n in scenes
        for m in questions
    ]


def _timed(way: Callable[[], None]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start
