"""Dual encoders that learn from dual encoders."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, mse_loss, normalize

from .. import families
from .trial import Batch, Trial

IMAGE, TEXT = "image", "text"


def clip_of(width: int, projection: int) -> hf.CLIPModel:
    sizes = {"hidden_size": width, "intermediate_size": 2 * width}
    words = {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    text = {**families.TEXT, **families.PLACES, **sizes, **words}
    config = hf.CLIPConfig(
        text_config=text, vision_config={**families.IMAGE, **sizes}, projection_dim=projection
    )
    return hf.CLIPModel(config)


def pairs(count: int = 4) -> dict[str, Any]:
    lengths = torch.tensor([7, 5, 6, 4])[:count, None]
    seen = (torch.arange(7) < lengths).long()
    ids = torch.randint(5, 90, (count, 7)) * seen
    ids[torch.arange(count), lengths[:, 0] - 1] = 2  # CLIP pools at the end of the text
    return {
        "input_ids": ids, "attention_mask": seen,
        "pixel_values": torch.rand(count, 3, 32, 32), "student_return_loss": True,
    }  # fmt: skip


def narrow_and_wide() -> tuple[nn.Module, nn.Module, Batch]:
    return clip_of(32, 16), families.spread(clip_of(64, 24)), pairs()


def embeddings(model: nn.Module, batch: Batch, **more: Any) -> Any:
    inputs = {k: v for k, v in batch.items() if not k.startswith("student_")}
    return model(**inputs, **more)


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the rows of logits, their mean."""
    return kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
    )


def relational(student: Any, teacher: Any) -> Tensor:
    """The mean of both directions, logit scales of 100."""
    sides = [
        100 * normalize(out.image_embeds, dim=-1) @ normalize(out.text_embeds, dim=-1).T
        for out in (student, teacher)
    ]
    return (kl(*sides) + kl(*(one.T for one in sides))) / 2


def clip_kd(distiller: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    out = embeddings(student, batch, return_loss=True)
    with torch.no_grad():
        wanted = embeddings(teacher, batch)
    trained = [term.aligners[0].linear for term in distiller.objective.each() if len(term.aligners)]
    to_image, to_text, image_to_text, text_to_image = trained

    def ends(projection: nn.Module, embedding: Tensor) -> Tensor:
        return normalize(projection(embedding), dim=-1)

    features = mse_loss(ends(to_image, out.image_embeds), wanted.image_embeds) + mse_loss(
        ends(to_text, out.text_embeds), wanted.text_embeds
    )
    own = torch.arange(len(out.image_embeds))
    across = [
        (ends(image_to_text, out.image_embeds), wanted.text_embeds),
        (ends(text_to_image, out.text_embeds), wanted.image_embeds),
    ]
    contrast = sum(cross_entropy(one @ other.T / 0.07, own) for one, other in across) / 2
    return out.loss + 2000 * features + contrast + relational(out, wanted)


def clip_affinity(distiller: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        wanted = embeddings(teacher, batch)
    return 2 * relational(embeddings(student, batch), wanted)


def without_loss() -> tuple[nn.Module, nn.Module, Batch]:
    student, teacher, batch = narrow_and_wide()
    return student, teacher, {k: v for k, v in batch.items() if k != "student_return_loss"}


def vectors(model: nn.Module, batch: Batch) -> dict[tuple[str, str], Tensor]:
    """Queries, keys and values ``(b, n, d)`` of the last layer of each tower."""
    found: dict[tuple[str, str], Tensor] = {}
    towers = {TEXT: model.text_model, IMAGE: model.vision_model}
    handles = []
    for tower, module in towers.items():
        attention = module.encoder.layers[-1].self_attn
        for of, part in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            keep = (tower, of)
            handles.append(
                getattr(attention, part).register_forward_hook(
                    lambda _module, _inputs, output, keep=keep: found.__setitem__(keep, output)
                )
            )
    embeddings(model, batch)
    for handle in handles:
        handle.remove()
    return found


def minilm_v2(distiller: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    ours = vectors(student, batch)
    with torch.no_grad():
        theirs = vectors(teacher, batch)
    total = torch.zeros(())
    for tower in (TEXT, IMAGE):
        seen = batch["attention_mask"].bool() if tower == TEXT else None
        for of in ("query", "key", "value"):
            log_q, log_p = (relations(side[tower, of], seen) for side in (ours, theirs))
            rows = (log_p.exp() * (log_p - log_q)).nan_to_num().sum(-1).mean(1)  # (b, n)
            kept = torch.ones_like(rows) if seen is None else seen.to(rows)
            total = total + ((rows * kept).sum(-1) / kept.sum(-1)).mean()
    return total


def relations(x: Tensor, seen: Tensor | None, heads: int = 4) -> Tensor:
    split = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ split.mT / split.shape[-1] ** 0.5
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    return scores.log_softmax(-1)


_RELATIONS = {
    f"{of}_relations/{tower}.options.relation_heads": 4
    for tower in (TEXT, IMAGE)
    for of in ("query", "key", "value")
}

TRIALS = {
    "clip_affinity": Trial(without_loss, clip_affinity),
    "clip_kd": Trial(narrow_and_wide, clip_kd),
    "minilm_v2": Trial(without_loss, minilm_v2, changes=_RELATIONS),
}
