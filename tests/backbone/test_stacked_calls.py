"""All calls of one module in a forward as examples: ``"module#*"``."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillkit as dk
from distillkit._attention.padding import pad_tokens
from distillkit.errors import CaptureError, DistillKitError


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, mask=None):
        heads = [f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v)]
        seen = None if mask is None else mask[:, None, None]
        out = nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen)
        return x + out.transpose(1, 2).flatten(2)


class OfImages(nn.Module):
    """A text tower that runs once, and an image tower that runs for every image."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.text, self.image = (nn.ModuleList([Attend(), Attend()]) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask, images):
        x = self.words(input_ids)
        for layer in self.text:
            x = layer(x, attention_mask)
        for number in range(images.shape[1]):
            y = images[:, number]
            for layer in self.image:
                y = layer(y)
            logits = self.head(y.mean(1))
        return {"logits": logits}


TABLES = {
    "streams": {"text": "text.*", "image": "image.*#*"},
    "hidden": {"text": "text.*", "image": "image.*#*"},
    "logits": "module:head#*",
    "tokens": {
        "text": [{"modality": "text", "length": "input_ids", "mask": "attention_mask"}],
        "image": [{"modality": "image", "grid": [2, 3]}],
    },
}


def made(images=2, **changes):
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    batch = {
        "input_ids": torch.randint(1, 20, (3, 4)),
        "attention_mask": mask,
        "images": torch.randn(3, images, 6, 8),
    }
    return dk.Backbone(OfImages().eval(), dk.DeclarativeAdapter(**{**TABLES, **changes})), batch


@pytest.mark.parametrize("images", [1, 2, 3])
def test_each_row_is_one_image_with_its_text(images):
    backbone, batch = made(images)
    done = backbone.trace(batch)
    assert done.layout.pairs["text"].tolist() == [i for i in range(3) for _ in range(images)]
    crossed = done.signals["attention.text_to_image"]
    for number in range(images):
        alone = backbone.trace({**batch, "images": batch["images"][:, [number]]}).signals
        rows = slice(number, None, images)
        for layer in range(2):
            torch.testing.assert_close(
                crossed[layer].probabilities()[rows],
                alone["attention.text_to_image"][layer].probabilities(),
            )
            torch.testing.assert_close(
                done.signals["hidden.image"][layer][rows], alone["hidden.image"][layer]
            )
        torch.testing.assert_close(done.signals["logits"][rows], alone["logits"])
    assert crossed[0].valid_rows()[:, 0].sum(1).tolist() == [
        n for n in (4, 2, 3) for _ in range(images)
    ]


def test_a_joint_stream_repeats_words_and_padding():
    """One tower that reads the same words in every call, as a joint stream of them alone."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layer = nn.Embedding(20, 8), Attend()

        def forward(self, input_ids, attention_mask):
            x = self.words(input_ids)
            return self.layer(self.layer(x, attention_mask), attention_mask)

    words = {"modality": "text", "length": "input_ids", "mask": "attention_mask"}
    tokens = {"joint": [words]}
    adapter = dk.DeclarativeAdapter(streams={"joint": "layer#*"}, tokens=tokens)
    _, batch = made()
    del batch["images"]
    done = dk.Backbone(Twice().eval(), adapter).trace(batch)
    expected = batch["attention_mask"].repeat_interleave(2, 0)
    assert torch.equal(done.layout["joint"].valid, expected)
    assert torch.equal(done.signals["attention.joint"][0].valid_rows()[:, 0], expected)


def test_only_the_last_output_is_kept_unless_all_are_asked_for():
    backbone, batch = made(3)
    with dk.capture(backbone.model, "image.*", outputs=["image.0#*", "image.1"]) as record:
        backbone.model(**batch)
    assert len(record.output("image.0#*")) == 3
    assert record.output("image.0") is record.output("image.0#*")[2]
    assert record.output("image.0#1") is record.output("image.0#*")[1]
    with pytest.raises(CaptureError, match=r"only the last output of 'image.1' was kept.*#\*"):
        record.output("image.1#*")
    with pytest.raises(CaptureError, match="counted from 0, of 3"):
        record.output("image.0#3")
    with pytest.raises(CaptureError, match=r'"image.0#\*"'):
        record["image.0"]
    with pytest.raises(CaptureError, match="number of a call"):
        record.layers("image.*#last")


def test_calls_of_unequally_many_examples_are_refused():
    model = nn.Module()
    model.layer = Attend()
    model.forward = lambda x: model.layer(x[:2]).sum() + model.layer(x).sum()
    with dk.capture(model, "layer") as record:
        model.forward(torch.randn(3, 4, 8))
    with pytest.raises(CaptureError, match=r"unequally many: \[2, 3\]"):
        record.layers("layer#*")[0]


def test_student_and_teacher_of_unequally_many_calls_are_refused():
    backbone, batch = made(2)
    few = {**batch, "images": batch["images"][:, :1]}
    recipe = dk.Objective([dk.Term("attention_kl", on="attention.image")])
    distiller = dk.Distiller(
        backbone.model, None, recipe, student_adapter=dk.DeclarativeAdapter(**TABLES)
    )
    with pytest.raises(
        DistillKitError, match=r"numbers of examples: student \(3, .* teacher \(6, "
    ):
        distiller(few, teacher_signals=backbone.signals(batch).detach())


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(0, 2), st.booleans())
def test_padding_counts_nowhere(q, k, more_rows, more_keys, replayed):
    torch.manual_seed(q * 5 + k)
    query, key = torch.randn(2, 3, q, 4), torch.randn(2, 3, k, 4)
    bias, mask = torch.randn(1, 1, 1, k), torch.rand(2, 1, q, k) > 0.3
    short = dk.Attention(query, key, bias=bias, mask=mask, rows=torch.rand(2, q) > 0.3)
    if replayed:
        short = dk.Attention.from_scores(short.scores(), rows=short.rows)
    padded = pad_tokens(short, q + more_rows, k + more_keys)
    assert padded.shape == (2, 3, q + more_rows, k + more_keys)
    found = padded.probabilities()
    torch.testing.assert_close(found[:, :, :q, :k], short.probabilities())
    assert not found[:, :, q:].any()
    assert not found[:, :, :, k:].any()
    assert torch.equal(padded.valid_rows()[:, :, :q], short.valid_rows())
    assert not padded.valid_rows()[:, :, q:].any()
