"""One step is the official arithmetic, written here in plain torch from its description.

Teacher, processor and student come from files in their real formats; everything is float64.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from dide_paper.collate import PaperCollator
from dide_paper.tasks import TASKS, TEXT_LENGTH
from dide_paper.teachers import load_teacher
from dide_paper.training import class_names, make_distiller, make_student, processor_of
from torch import Tensor
from torch.nn import functional as F

import distillkit as dk
from tests.support import paper_files as files


class Seen(NamedTuple):
    """Queries and keys of a last layer, ``(b, h, n, d)``, of one call after another."""

    queries: list[Tensor]
    keys: list[Tensor]


def watched(attention, heads):
    """What the projections of an attention module return from now on."""
    seen = Seen([], [])

    def keep(into):
        def hook(_, __, x):
            into.append(x.unflatten(2, (heads, -1)).transpose(1, 2))

        return hook

    attention.query.register_forward_hook(keep(seen.queries))
    attention.key.register_forward_hook(keep(seen.keys))
    return seen


def drawn(embeddings):
    """The patches that ViLT draws from now on, call by call: their order in the raster."""
    calls = []
    original = embeddings.visual_embed

    def visual_embed(*args, **kwargs):
        x, mask, (index, (rows, columns)) = original(*args, **kwargs)
        rank = torch.where(mask[:, 1:] != 0, index[..., 0] * columns + index[..., 1], 10**6)
        order = torch.cat([rank.new_zeros(len(rank), 1), rank.argsort(dim=1, stable=True) + 1], 1)
        calls.append((order, mask.gather(1, order)))
        return x, mask, (index, (rows, columns))

    embeddings.visual_embed = visual_embed
    return calls


def in_order(x, order):
    """The image's part of ``(b, h, n, d)``, row by row."""
    return x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def official_attention(student, teacher, text_mask, image_mask):
    """Mean over heads and all queries, padded ones too, of KL(teacher || student) over real keys.

    Each side is (text queries, text keys, image queries, image keys).
    """
    total = 0.0
    for query, key, keys_kept in ((0, 3, image_mask), (2, 1, text_mask)):
        logs = []
        for side in (student, teacher):
            scores = side[query] @ side[key].mT * side[query].shape[-1] ** -0.5
            logs.append(scores.masked_fill(keys_kept[:, None, None] == 0, -1e30).log_softmax(-1))
        rows = (logs[1].exp() * (logs[1] - logs[0])).sum(-1)
        total = total + rows.mean()
    return total


@pytest.fixture(scope="module", params=["vqa", "ve", "nlvr2"])
def case(request, tmp_path_factory):
    """Everything from files, as run.py loads it."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(5)
    files.write_checkpoint(folder / "start", "pretraining")
    files.write_checkpoint(folder / "teacher", request.param)
    task = TASKS[request.param]
    teacher = load_teacher(task.name, str(folder / "teacher"))
    names = class_names(task, teacher, None)
    student = make_student(task, str(folder / "start"), names)
    return task, student.double().eval(), teacher.double(), processor_of(str(folder / "start"))


def make_batch(task, processor, student):
    examples = []
    for i in range(3):
        # the largest image of the first ones has as many patches as that of the second ones
        images = [files.make_picture(i)] + [files.make_picture(i + 1)] * (task.images - 1)
        labels = torch.rand(len(files.ANSWERS)) if task.name == "vqa" else i % 2
        examples.append({"id": i, "text": files.make_text(i), "images": images, "labels": labels})
    batch = PaperCollator(task, processor)(examples)
    batch["pixel_values"] = batch["pixel_values"].double()
    assert batch["input_ids"].shape == (3, TEXT_LENGTH)
    assert not batch["attention_mask"].all()  # padded words,
    assert not batch["pixel_mask"].all()  # and padded patches
    assert student.config.num_labels == len(files.CLASSES[task.name])
    return batch


def test_one_step(case):
    task, student, teacher, processor = case
    batch = make_batch(task, processor, student)
    text_mask = batch["attention_mask"]
    inputs = {name: x for name, x in batch.items() if name != "labels"}

    # the official arithmetic
    heads = teacher.config.num_attention_heads
    of_text = watched(student.text.encoder.layer[-1].attention.attention, heads)
    of_image = watched(student.image.encoder.layer[-1].attention.attention, heads)
    of_teacher = watched(teacher.vilt.encoder.layer[-1].attention.attention, heads)
    calls = drawn(teacher.vilt.embeddings)
    with torch.no_grad():
        s, t = student(**inputs).logits, teacher(**inputs).logits
    attention = torch.zeros((), dtype=torch.float64)
    pairs = []
    for i in range(task.images):
        order, image_mask = calls[i]
        part = slice(i, None, task.images)  # row 2 e + i is image i of example e
        both = of_teacher.queries[i], of_teacher.keys[i]
        theirs = [
            side(x) for x in both
            for side in (lambda x: x[:, :, :TEXT_LENGTH],
                         lambda x, order=order: in_order(x[:, :, TEXT_LENGTH:], order))
        ]  # fmt: skip
        theirs = [theirs[0], theirs[2], theirs[1], theirs[3]]
        ours = [of_text.queries[0], of_text.keys[0], of_image.queries[0][part],
                of_image.keys[0][part]]  # fmt: skip
        attention = attention + official_attention(ours, theirs, text_mask, image_mask)
        pairs.append((theirs, image_mask))
    if task.name == "vqa":
        soft = F.binary_cross_entropy_with_logits(s, t.sigmoid()) * s.shape[1]
    else:
        soft = F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean")
    expected = soft + attention

    # the library
    if task.images == 1 or files.reads_two_calls():
        found = make_distiller(task, student, teacher).eval()(batch).loss
    if task.images == 2:  # two calls of one module, stacked by hand
        signals = stacked(t, pairs, text_mask)
        by_hand = make_distiller(task, student, None).eval()(batch, teacher_signals=signals).loss
        found = found if files.reads_two_calls() else by_hand
        torch.testing.assert_close(by_hand.detach(), expected, rtol=1e-12, atol=1e-12)
    assert found.dtype == torch.float64
    assert attention > 0.1
    torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-12)
    found.backward()
    assert all(p.grad is not None for p in student.parameters())


def stacked(logits, pairs, text_mask):
    """The teacher's signals of both images, as pairs: row ``2 e + i`` is image i of example e."""
    queries_t, keys_t, queries_i, keys_i = (
        torch.stack([theirs[k] for theirs, _ in pairs], 1).flatten(0, 1) for k in range(4)
    )
    image_mask = torch.stack([mask for _, mask in pairs], 1).flatten(0, 1)[:, None, None] != 0
    words = text_mask.repeat_interleave(len(pairs), 0)[:, None, None] != 0
    return dk.Signals(
        {
            "logits": logits,
            "attention.text_to_image": (dk.Attention(queries_t, keys_i, mask=image_mask),),
            "attention.image_to_text": (dk.Attention(queries_i, keys_t, mask=words),),
        }
    )


def test_the_balance_of_the_terms_is_the_official_one():
    """Soft labels of VQA are summed over the answers, and nothing is rescaled."""
    recipe = dk.load_recipe(TASKS["vqa"].recipe)
    assert [term.weight for term in recipe.terms] == [1.0, 1.0, 1.0]
    assert recipe.terms[0].loss == "soft_binary_cross_entropy"
    for name in ("ve", "retrieval"):
        terms = dk.load_recipe(TASKS[name].recipe).terms
        assert [(term.loss, term.weight) for term in terms] == [
            ("kl_divergence", 1.0), ("attention_kl", 1.0), ("attention_kl", 1.0),
        ]  # fmt: skip
    assert [term.weight for term in dk.load_recipe(TASKS["nlvr2"].recipe).terms] == [1, 2, 2]
