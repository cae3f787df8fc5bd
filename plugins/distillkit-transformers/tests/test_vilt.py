"""ViLT draws its patches at random: what the adapter makes of it."""

from __future__ import annotations

import pytest
import torch

import distillkit as dk

from . import families


def run(model, batch, seed):
    adapter = dk.adapter_for(model)
    (pattern,) = adapter.streams.values()
    torch.manual_seed(seed)
    with torch.no_grad(), dk.capture(model, pattern, returns=adapter.returns) as record:
        output = model(**adapter.inputs(batch))
        layout = adapter.layout(batch, record)
    return adapter.signals(record, output, layout), layout, record.layers(pattern)


@pytest.fixture
def model():
    return families.spread(families.vilt()[0]).eval()


def test_two_forwards_give_the_same_cross_modal_attention(model):
    batch = families.vilt()[1]
    (one, _, raw), (two, _, other_raw) = (run(model, batch, seed) for seed in (1, 2))
    drawn, drawn_again = (layers[-1].probabilities() for layers in (raw, other_raw))
    assert (drawn - drawn_again).abs().max() > 1e-3  # the raw maps are scrambled
    for name in ("attention.text_to_image", "attention.image_to_text"):
        for first, second in zip(one[name], two[name], strict=True):
            torch.testing.assert_close(
                first.probabilities(), second.probabilities(), rtol=1e-4, atol=1e-6
            )


def test_smaller_images_keep_their_raster_and_pad_at_the_end(model):
    batch = families.vilt_of_unequal_images()[1]
    batch["image_boxes"] = torch.tensor([[0.0, 0, 1, 1]] * 2)
    for seed in (1, 2):
        _, layout, _ = run(model, batch, seed)
        image = layout["joint"]["image"]
        assert image.grid is None  # the images have different ones
        real = layout["joint"].valid.take_along_dim(image.positions, 1)
        assert real.sum(1).tolist() == [17, 9]
        assert real[1, :9].all()
        assert image.extents[0, 1].tolist() == [0, 0, 0.25, 0.25]
        # the second image is 32 x 16: two columns, each half of it
        assert image.extents[1, 1:4].tolist() == [
            [0, 0, 0.25, 0.5], [0, 0.5, 0.25, 1], [0.25, 0, 0.5, 0.5],
        ]  # fmt: skip


def test_an_image_that_ends_within_a_patch(model):
    """Extents end with the image, not with the patch that it fills in part."""
    batch = {**families.vilt()[1], "image_boxes": torch.tensor([[0.0, 0, 1, 1]] * 2)}
    batch["pixel_mask"][1, 28:] = 0
    _, layout, _ = run(model, batch, 1)
    last = layout["joint"]["image"].extents[1, -1]
    torch.testing.assert_close(last, torch.tensor([24 / 28, 0.75, 1, 1]))


def test_a_random_subset_is_told_by_extents(model):
    """With max_image_length ViLT keeps some patches only; the layout says which."""
    from transformers import ViltModel

    small = ViltModel(families.vilt_config(max_image_length=6)).eval()
    batch = {**families.vilt()[1], "image_boxes": torch.tensor([[0.0, 0, 1, 1]] * 2)}
    _, layout, _ = run(small, batch, 1)
    image = layout["joint"]["image"]
    assert image.grid is None
    rank = image.extents[:, 1:, 0] * 4 + image.extents[:, 1:, 1]
    assert rank.shape == (2, 6)
    assert (rank.diff(dim=1) > 0).all()


def test_a_batch_of_one_and_gradient(model):
    batch = {name: x[:1] for name, x in families.vilt()[1].items()}
    adapter = dk.adapter_for(model)
    distiller = dk.Distiller(
        model.train(), None, dk.load_recipe("dide_attention"), student_adapter=adapter
    )
    signals, _, _ = run(model.eval(), batch, 3)
    model.train()
    distiller(batch, teacher_signals=signals.detach()).loss.backward()
    grad = model.encoder.layer[1].attention.attention.query.weight.grad
    assert grad is not None
