"""Smaller fusion encoders that learn from larger ones, and dual encoders that rank as they do."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, normalize

from .. import families
from . import clip
from .trial import Batch, Trial

HEADS = 4
PLACES = ((0, 1), (1, 3))  # two layers of the student with evenly spaced ones of four


def blip_of(depth: int) -> nn.Module:
    config = families.blip_config()
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = depth
    return hf.BlipForImageTextRetrieval(config)


def two_and_four_layers() -> tuple[nn.Module, nn.Module, Batch]:
    batch = {**families.pair(), "student_labels": torch.tensor([1, 0])}
    teacher = families.spread(blip_of(4))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(20):  # so that it does not pull away from the labels
        matching(teacher(**inputs(batch)), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return blip_of(2), teacher, batch


def inputs(batch: Batch) -> dict[str, Any]:
    return {k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values")}


def matching(out: Any, batch: Batch) -> Tensor:
    return cross_entropy(out.itm_score, batch["student_labels"])


def watched(model: nn.Module, batch: Batch) -> tuple[Any, list[Tensor], list[Tensor], list[Tensor]]:
    """The output; hidden states of words and patches, and cross-attention, of every layer."""
    text: list[Tensor] = []
    image: list[Tensor] = []
    ends: list[Tensor] = []
    hooks = []
    for layer in model.text_encoder.encoder.layer:
        hooks.append(layer.register_forward_hook(lambda *a: text.append(first(a[2]))))
        reader = layer.crossattention.self
        hooks += [
            part.register_forward_hook(lambda *a: ends.append(a[2]))
            for part in (reader.query, reader.key)
        ]
    hooks += [
        layer.register_forward_hook(lambda *a: image.append(first(a[2])))
        for layer in model.vision_model.encoder.layers
    ]
    out = model(**inputs(batch))
    for hook in hooks:
        hook.remove()
    split = [x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in ends]
    maps = [
        (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        for q, k in zip(split[::2], split[1::2], strict=True)
    ]
    return out, text, image, maps


def first(returned: Any) -> Tensor:
    return returned[0] if isinstance(returned, tuple) else returned


def by_example(values: Tensor, seen: Tensor | None) -> Tensor:
    """The mean over examples of the mean over their real positions."""
    if seen is None:
        return values.mean()
    kept = seen.to(values)
    return ((values * kept).sum(-1) / kept.sum(-1)).mean()


def efficient_vlm(_: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    out, *ours = watched(student, batch)
    with torch.no_grad():
        wanted, *theirs = watched(teacher, batch)
    words = batch["attention_mask"].bool()
    rest = kl_div(
        out.itm_score.log_softmax(-1), wanted.itm_score.log_softmax(-1),
        log_target=True, reduction="batchmean",
    )  # fmt: skip
    for kind, seen in enumerate((words, None, words)):
        pairs = [(ours[kind][i], theirs[kind][j]) for i, j in PLACES]
        squares = [(one - other).square().mean(-1) for one, other in pairs]
        if kind == 2:  # of maps (b, h, q), heads averaged
            squares = [x.mean(1) for x in squares]
        rest = rest + sum(by_example(x, seen) for x in squares) / len(PLACES)
    return 0.8 * matching(out, batch) + 0.2 * rest


def towers_and_scorer() -> tuple[nn.Module, nn.Module, Batch]:
    """Three texts for each of two images; the scorer and the towers run on all pairs."""
    batch = clip.pairs(4)
    batch = {k: v[:2] for k, v in batch.items() if isinstance(v, Tensor)}
    words = clip.pairs(4)
    repeated = {
        "input_ids": torch.cat([batch["input_ids"], words["input_ids"]]),
        "attention_mask": torch.cat([batch["attention_mask"], words["attention_mask"]]),
        "pixel_values": batch["pixel_values"].repeat_interleave(3, 0),
    }
    scorer = hf.ViltForImageAndTextRetrieval(families.vilt_config())
    return clip.clip_of(32, 16), families.spread(scorer), {**repeated, "candidates": 3}


def own_text_first(out: Any, batch: Batch) -> Tensor:
    """Cross-entropy of the first of each image's texts."""
    scores = cosines(out, batch) * 10
    return cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))


def cosines(out: Any, batch: Batch) -> Tensor:
    both = (normalize(x, dim=-1) for x in (out.text_embeds, out.image_embeds))
    text, image = both
    return (text * image).sum(-1).view(-1, batch["candidates"])


def cross_encoder_retrieval(_: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    out = student(**inputs(batch))
    with torch.no_grad():
        wanted = teacher(**inputs(batch)).logits.view(-1, batch["candidates"])
    scores = cosines(out, batch).gather(1, wanted.argsort(1, descending=True))
    behind = scores.flip(1).logcumsumexp(1).flip(1)
    return own_text_first(out, batch) + (behind - scores).sum(1).mean()


TRIALS = {
    "cross_encoder_retrieval": Trial(
        towers_and_scorer, cross_encoder_retrieval, options={"task_loss": own_text_first},
        flat=frozenset({"task"}),
    ),
    "efficient_vlm": Trial(
        two_and_four_layers, efficient_vlm, options={"task_loss": matching}, rate=1e-3
    ),
}  # fmt: skip
