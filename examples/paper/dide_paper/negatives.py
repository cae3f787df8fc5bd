"""Hard negatives: of a pool of captions, those that the student itself takes for an image's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import OptionError


def hardest(scores: Tensor, own: Tensor, count: int) -> Tensor:
    """The captions with the highest scores that are not the image's own, ``(images, count)``.

    Args:
        scores: ``(images, captions)``.
        own: ``(images, captions)``, boolean: the true ones.
        count: how many.

    Raises:
        OptionError: an image for which there are not so many.

    Examples:
        >>> scores = torch.tensor([[3.0, 2.0, 1.0], [0.0, 5.0, 4.0]])
        >>> hardest(scores, torch.eye(2, 3).bool(), 1).tolist()
        [[1], [2]]
    """
    fewest = int((~own).sum(1).min())
    if fewest < count:
        raise OptionError(f"{count} false captions are needed, and an image has {fewest}")
    return scores.masked_fill(own, -torch.inf).topk(count, dim=1).indices


@torch.no_grad()
def mine(
    score: Callable[[Sequence[int], Sequence[tuple[int, int]]], Tensor],
    captions: Sequence[Sequence[str]],
    least: int,
    *,
    spare: int = 4,
    pool: int = 1024,
    images: int = 64,
    generator: torch.Generator | None = None,
) -> list[list[tuple[int, int]]]:
    """For every image the hardest captions of a pool that is drawn for some images at a time.

    Scoring every image with every caption would be the product of both; a pool is enough to find
    hard ones.

    Args:
        score: ``score(rows, places)``: scores ``(rows, places)`` of images with captions, where a
            place is ``(row, number)``.
        captions: the captions of every row.
        least: how many each image needs.
        spare: how many times as many are kept, if there are so many, to draw from in every epoch.
        pool: how many captions are drawn.
        images: how many images share a pool.
        generator: of the draw.
    """
    places = [(row, number) for row, own in enumerate(captions) for number in range(len(own))]
    found: list[list[tuple[int, int]]] = []
    for start in range(0, len(captions), images):
        rows = range(start, min(start + images, len(captions)))
        drawn = torch.randperm(len(places), generator=generator)[:pool].tolist()
        tried = [places[i] for i in drawn]
        own = torch.tensor([[place[0] == row for place in tried] for row in rows])
        count = min(spare * least, max(least, int((~own).sum(1).min())))
        chosen = hardest(score(rows, tried).cpu(), own, count)
        found += [[tried[i] for i in row] for row in chosen.tolist()]
    return found


def recalls(scores: Tensor, own: Tensor, ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall of retrieval in both directions.

    Args:
        scores: ``(images, captions)``.
        own: the image of every caption, ``(captions,)``.
        ranks: k of R@k.

    Returns:
        ``"text_recall@k"``: of an image, a caption of its own is among the first k; and
        ``"image_recall@k"``: of a caption, its image is.

    Examples:
        >>> scores = torch.tensor([[2.0, 1.0, 3.0], [0.0, 5.0, 1.0]])
        >>> recalls(scores, torch.tensor([0, 0, 1]), ranks=[1])
        {'text_recall@1': 0.0, 'image_recall@1': 0.3333333432674408}
    """
    true = own[None] == torch.arange(len(scores), device=own.device)[:, None]
    found: dict[str, Any] = {}
    for name, ordered, right in (("text", scores, true), ("image", scores.T, true.T)):
        for k in ranks:
            first = ordered.topk(min(k, ordered.shape[1]), dim=1).indices
            hit = right.gather(1, first).any(1)
            found[f"{name}_recall@{k}"] = float(hit.float().mean())
    return found
