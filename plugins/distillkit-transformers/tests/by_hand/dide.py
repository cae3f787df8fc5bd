"""Dual encoders that learn from fusion encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import families
from .trial import Batch, Trial

HEADS = 4
Blocks = dict[str, tuple[Tensor, Tensor]]
"""Direction -> scores ``(b, h, q, k)``, and which keys and rows are words, ``(b, n)``."""


def towers_and_fusion() -> tuple[nn.Module, nn.Module, Batch]:
    """Two towers with the teacher's tokens and heads, and a ViLT."""
    student = families.vision_text_dual_encoder()[0]
    teacher, batch = families.vilt()
    return student, families.spread(teacher), batch


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def seen_by(attention: nn.Module, names: tuple[str, str], run: Callable[[], Any]) -> list[Tensor]:
    """Queries and keys ``(b, h, n, d)`` of one attention in one forward."""
    found: list[Tensor] = []
    hooks = [
        getattr(attention, name).register_forward_hook(
            lambda _module, _inputs, output: found.append(heads(output))
        )
        for name in names
    ]
    run()
    for hook in hooks:
        hook.remove()
    return found


def scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.mT / query.shape[-1] ** 0.5


def student_scores(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
    words = {k: batch[k] for k in ("input_ids", "attention_mask")}
    text = student.text_model.encoder.layer[-1].attention.self
    image = student.vision_model.layers[-1].attention
    text_query, text_key = seen_by(text, ("query", "key"), lambda: student.text_model(**words))
    image_query, image_key = seen_by(
        image,
        ("q_proj", "k_proj"),
        lambda: student.vision_model(pixel_values=batch["pixel_values"]),
    )
    return {
        "text_to_image": scores(text_query, image_key),
        "image_to_text": scores(image_query, text_key),
    }


def teacher_scores(teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The blocks of ViLT's last layer; it draws an order of the patches, which is undone."""
    embeddings, orders = teacher.embeddings, []
    inner = embeddings.visual_embed

    def recorded(*arguments: Any, **more: Any) -> Any:
        returned = inner(*arguments, **more)
        orders.append(returned[2][0])  # (b, n, 2): row and column of each patch
        return returned

    embeddings.visual_embed = recorded
    attention = teacher.encoder.layer[-1].attention.attention
    try:
        query, key = seen_by(attention, ("query", "key"), lambda: teacher(**batch))
    finally:
        del embeddings.visual_embed
    whole, words = scores(query, key), batch["input_ids"].shape[1]
    cells = orders[0][..., 0] * 4 + orders[0][..., 1]
    place = torch.cat([torch.zeros_like(cells[:, :1]), 1 + cells.argsort(-1)], 1) + words
    index = place[:, None, None].expand(-1, HEADS, words, -1)
    return {
        "text_to_image": whole[:, :, :words].gather(-1, index),
        "image_to_text": whole.gather(2, place[:, None, :, None].expand(*index.shape[:2], -1, whole.shape[-1]))[..., :words],
    }  # fmt: skip


def attention_kl(student: Tensor, teacher: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    """The mean over examples of the mean over their real rows, heads averaged."""
    log_q, log_p = (x.masked_fill(~keys, -torch.inf).log_softmax(-1) for x in (student, teacher))
    values = (log_p.exp() * (log_p - log_q)).nan_to_num().sum(-1).mean(1)
    kept = rows.to(values)
    return ((values * kept).sum(-1) / kept.sum(-1)).mean()


def directions(student: nn.Module, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Direction -> its value."""
    ours = student_scores(student, batch)
    with torch.no_grad():
        theirs = teacher_scores(teacher, batch)
    words = batch["attention_mask"].bool()
    patches = torch.ones(len(words), ours["text_to_image"].shape[-1], dtype=torch.bool)
    masks = {"text_to_image": (words, patches), "image_to_text": (patches, words)}
    return {
        name: attention_kl(ours[name], theirs[name], rows, keys[:, None, None])
        for name, (rows, keys) in masks.items()
    }


def both(distiller: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    return sum(directions(student, teacher, batch).values(), torch.zeros(()))


def one(distiller: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    return directions(student, teacher, batch)["text_to_image"]


TRIALS = {
    "dide_attention": Trial(towers_and_fusion, both),
    "dide_text_to_image": Trial(towers_and_fusion, one),
}
