"""The paper's tasks: two towers from one ViLT learn from a ViLT, as the official code counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers as hf
from distillkit_transformers import ViltDualEncoder
from torch import Tensor, nn
from torch.nn import functional as F

from .. import families
from .trial import Batch, Trial

HEADS = 4


class Seen(NamedTuple):
    """Queries and keys ``(b, h, n, d)`` of a last layer, of one call after another."""

    queries: list[Tensor]
    keys: list[Tensor]


def pair_of(
    task: str, teacher_class: type[nn.Module]
) -> Callable[[], tuple[nn.Module, nn.Module, Batch]]:
    """A teacher, a student of another ViLT, and texts with images; one text is padded."""

    def made() -> tuple[nn.Module, nn.Module, Batch]:
        labels = {"nlvr2": 2, "ve": 3}.get(task, 9)
        two = {"modality_type_vocab_size": 3, "num_images": 2} if task == "nlvr2" else {}
        config = families.vilt_config(num_labels=labels, **two)
        teacher = families.spread(teacher_class(config))
        kind = hf.ViltForMaskedLM if task == "pretraining" else hf.ViltModel
        names = {i: f"answer {i}" for i in range(labels)} if task == "vqa" else None
        start = kind(families.vilt_config())
        student = ViltDualEncoder.from_vilt(start, task=task, id2label=names)
        return student, teacher, batch_of(task)

    return made


def batch_of(task: str) -> dict[str, Any]:
    batch = families.tokenized()
    batch["pixel_mask"] = torch.ones(2, 32, 32).long()
    if task == "nlvr2":
        batch["pixel_values"] = torch.rand(2, 2, 3, 32, 32)
        batch["pixel_mask"] = torch.ones(2, 2, 32, 32).long()
    if task == "pretraining":
        labels = torch.full_like(batch["input_ids"], -100)
        labels[:, 2:4] = torch.randint(5, 90, (2, 2))
        labels[1, 3] = -100  # unequally many words, so that a mean over examples is another
        batch["student_labels"] = labels
    if task == "retrieval":  # two texts for each of two images
        for name in ("input_ids", "attention_mask"):
            batch[name] = batch[name].repeat(2, 1)
        index = torch.tensor([0, 0, 1, 1])
        batch |= {
            "candidates": 2, "student_image_index": index,
            "teacher_pixel_values": batch["pixel_values"][index],
            "teacher_pixel_mask": batch["pixel_mask"][index],
        }  # fmt: skip
    return batch


def watched(attention: nn.Module) -> Seen:
    """What the projections of an attention return from now on."""
    seen = Seen([], [])
    for part, into in ((attention.query, seen.queries), (attention.key, seen.keys)):
        part.register_forward_hook(
            lambda _module, _inputs, x, into=into: into.append(
                x.unflatten(2, (HEADS, -1)).transpose(1, 2)
            )
        )
    return seen


def drawn(embeddings: nn.Module) -> list[Tensor]:
    """The order that undoes ViLT's drawing of patches, call by call; [CLS] stays first."""
    calls: list[Tensor] = []
    inner = type(embeddings).visual_embed

    def visual_embed(*arguments: Any, **more: Any) -> Any:
        returned = inner(embeddings, *arguments, **more)
        index, (_, columns) = returned[2]
        order = (index[..., 0] * columns + index[..., 1]).argsort(1) + 1
        calls.append(torch.cat([torch.zeros_like(order[:, :1]), order], 1))
        return returned

    embeddings.visual_embed = visual_embed
    return calls


def inputs_of(side: str, model: nn.Module, batch: Batch) -> dict[str, Any]:
    shared = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
    found = {name: batch[name] for name in shared}
    own = {k.removeprefix(f"{side}_"): v for k, v in batch.items() if k.startswith(f"{side}_")}
    own.pop("labels", None)
    return {**found, **own}


def by_hand(soft: Callable[[Tensor, Tensor, Batch], Tensor]) -> Callable[..., Tensor]:
    """The official arithmetic: soft labels, and KL over all query rows, of each image apart."""

    def loss(_: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
        of_text = watched(student.text.encoder.layer[-1].attention.attention)
        of_image = watched(student.image.encoder.layer[-1].attention.attention)
        fused = watched(teacher.vilt.encoder.layer[-1].attention.attention)
        orders = drawn(teacher.vilt.embeddings)
        out = student(**inputs_of("student", student, batch)).logits
        with torch.no_grad():
            wanted = teacher(**inputs_of("teacher", teacher, batch)).logits
        del teacher.vilt.embeddings.visual_embed
        images, words = len(orders), batch["input_ids"].shape[1]
        index = batch.get("student_image_index")
        total = soft(out, wanted, batch)
        seen = batch["attention_mask"].bool()[:, None, None]
        for i, order in enumerate(orders):
            queries, keys = fused.queries[i], fused.keys[i]
            place = order[:, None, :, None].expand(-1, HEADS, -1, queries.shape[3])
            image_query, image_key = (x[:, :, words:].gather(2, place) for x in (queries, keys))
            ours = [x[0][i::images] if index is None else x[0][index] for x in of_image]
            total = total + rows_kl(of_text.queries[0], ours[1], queries[:, :, :words], image_key)
            total = total + rows_kl(ours[0], of_text.keys[0], image_query, keys[:, :, :words], seen)
        return total

    return loss


def rows_kl(
    query: Tensor, key: Tensor, teacher_query: Tensor, teacher_key: Tensor,
    seen: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """KL(teacher || student), the mean over examples, heads and all queries, padded ones too."""
    logs = []
    for q, k in ((query, key), (teacher_query, teacher_key)):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, -1e30)
        logs.append(scores.log_softmax(-1))
    return (logs[1].exp() * (logs[1] - logs[0])).sum(-1).mean()


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )


def classes(out: Tensor, wanted: Tensor, _: Batch) -> Tensor:
    return kl(out, wanted)


def answers(out: Tensor, wanted: Tensor, _: Batch) -> Tensor:
    summed = F.binary_cross_entropy_with_logits(out, wanted.sigmoid(), reduction="sum")
    return summed / len(out)


def masked_words(out: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
    chosen = batch["student_labels"] != -100
    return kl(out[chosen], wanted[chosen])


def candidates(out: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
    return kl(out.view(-1, batch["candidates"]), wanted.view(-1, batch["candidates"]))


def real_rows(_: Any, student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    """Of the recipe that leaves padded words out: their mean is taken example by example."""
    seen = batch["attention_mask"].bool()
    total = torch.zeros(())
    for example in range(len(seen)):
        words = int(seen[example].sum())
        alone = {k: v[example : example + 1] for k, v in batch.items()}
        alone |= {k: alone[k][:, :words] for k in ("input_ids", "attention_mask")}
        total = total + by_hand(classes)(None, student, teacher, alone)
    return total / len(seen)


TRIALS = {
    "dide": Trial(pair_of("ve", hf.ViltForQuestionAnswering), real_rows),
    "dide_nlvr2": Trial(pair_of("nlvr2", hf.ViltForImagesAndTextClassification), by_hand(classes)),
    "dide_pretraining": Trial(pair_of("pretraining", hf.ViltForMaskedLM), by_hand(masked_words)),
    "dide_retrieval": Trial(
        pair_of("retrieval", hf.ViltForImageAndTextRetrieval), by_hand(candidates)
    ),
    "dide_ve": Trial(pair_of("ve", hf.ViltForQuestionAnswering), by_hand(classes)),
    "dide_vqa": Trial(
        pair_of("vqa", hf.ViltForQuestionAnswering), by_hand(answers),
        flat=frozenset({"soft_binary_cross_entropy/logits"}),
    ),
}  # fmt: skip
