"""ViLT over two images of a text (NLVR2): both calls, stacked as examples."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import distillkit as dk
from distillkit.errors import CaptureError

from . import families


def built(**changes):
    torch.manual_seed(0)
    model, batch = families.vilt_of_two_images()
    return families.spread(model).eval(), {**batch, **changes}


def own_attentions(model, batch, seed=3):
    """What transformers returns of each layer, call by call."""
    model.set_attn_implementation("eager")
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(**batch, output_attentions=True, output_hidden_states=True)


def signals_of(model, batch, seed=3):
    backbone = dk.Backbone(model)
    torch.manual_seed(seed)
    return backbone.trace(batch)


def unequal_masks():
    mask = torch.ones(2, 2, 32, 32).long()
    mask[:, 1, :, 16:] = 0
    mask[1, 0, 16:] = 0
    return mask


@pytest.mark.parametrize("mask", [None, unequal_masks()], ids=["alike", "unequal"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_call_is_what_transformers_returns(mask, implementation):
    model, batch = built(pixel_mask=torch.ones(2, 2, 32, 32).long() if mask is None else mask)
    model.set_attn_implementation(implementation)
    done = signals_of(model, batch)
    expected = own_attentions(model, batch)
    joint = done.signals["attention.joint"]
    assert len(joint) == 2
    for layer, attention in enumerate(joint):
        valid = done.layout["joint"].valid
        for image in range(2):
            theirs = expected.attentions[image][layer]
            for example in range(2):
                row, n = example * 2 + image, theirs.shape[-1]
                real = valid[row, :n]
                ours = attention.probabilities()[row]
                torch.testing.assert_close(
                    ours[:, :n, :n][:, real], theirs[example][:, real], atol=1e-5, rtol=1e-4
                )
                assert not ours[:, :, n:].any()  # what pads the shorter call is seen by nobody
    for layer, hidden in enumerate(done.signals["hidden.joint"]):
        for image in range(2):
            theirs = expected.hidden_states[image][layer + 1]
            torch.testing.assert_close(hidden[image::2, : theirs.shape[1]], theirs)
    assert done.signals.mask("hidden.joint").shape == done.signals["hidden.joint"][-1].shape[:2]


def test_it_is_the_same_as_one_image_after_another():
    """Row i * 2 + c is what ViLT makes of text i with image c, in raster order."""
    model, batch = built(pixel_mask=unequal_masks())
    batch["image_boxes"] = torch.tensor([0.0, 0, 1, 1]).expand(2, 2, 4)
    together = signals_of(model, batch)
    assert together.layout.pairs["text"].tolist() == [0, 0, 1, 1]
    image = together.layout["joint"]["image"]
    single = hf.ViltModel(model.config, add_pooling_layer=False).eval()
    single.load_state_dict(
        {k.removeprefix("vilt."): v for k, v in model.state_dict().items() if k[:5] == "vilt."},
        strict=False,
    )
    for row in range(4):
        example, number = divmod(row, 2)
        alone = {
            "input_ids": batch["input_ids"][[example]],
            "attention_mask": batch["attention_mask"][[example]],
            "pixel_values": batch["pixel_values"][[example], number],
            "pixel_mask": batch["pixel_mask"][[example], number],
            "image_boxes": batch["image_boxes"][[example], number],
        }
        if number == 1:  # the second image has a token type of its own
            with torch.no_grad():
                types = single.embeddings.token_type_embeddings.weight
                types[1] = model.vilt.embeddings.token_type_embeddings.weight[2]
        else:
            with torch.no_grad():
                types = single.embeddings.token_type_embeddings.weight
                types[1] = model.vilt.embeddings.token_type_embeddings.weight[1]
        done = signals_of(single, alone)
        for name in ("attention.text_to_image", "attention.image_to_text"):
            ours = together.signals[name][-1].probabilities()[row]
            theirs = done.signals[name][-1].probabilities()[0]
            q, k = theirs.shape[-2:]
            torch.testing.assert_close(ours[:, :q, :k], theirs, atol=1e-5, rtol=1e-3)
            assert not ours[:, q:].any()
            assert not ours[:, :, k:].any()
        extents = done.layout["joint"]["image"].extents
        torch.testing.assert_close(image.extents[row, : extents.shape[1]], extents[0])


def test_only_what_is_wanted_is_kept_and_checkpointing_changes_nothing():
    model, batch = built()
    whole = signals_of(model, batch).signals
    backbone = dk.Backbone(model)
    torch.manual_seed(3)
    _, some = backbone.run(batch, wanted={"attention.text_to_image": frozenset({-1})})
    name = "attention.text_to_image"
    torch.testing.assert_close(some[name][-1].scores(), whole[name][-1].scores())
    with pytest.raises(CaptureError, match="was not kept"):
        some[name][0]

    def gradient(checkpointing):
        model.zero_grad()
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        _, signals = dk.Backbone(model).run(batch)
        (signals[name][0].probabilities() ** 2).sum().backward()
        return model.vilt.encoder.layer[0].attention.attention.query.weight.grad.clone()

    plain, saved = gradient(False), gradient(True)
    assert plain.abs().sum() > 0
    torch.testing.assert_close(plain, saved)


def test_gradient_reaches_both_images():
    model, batch = built()
    batch["pixel_values"].requires_grad_()
    _, signals = dk.Backbone(model).run(batch)
    rows = signals["attention.text_to_image"][-1].probabilities()
    (rows[1] ** 2).sum().backward()
    grad = batch["pixel_values"].grad.abs().sum((-1, -2, -3))
    assert grad[0, 1] > 0
    assert grad[0, 0] == grad[1, 0] == grad[1, 1] == 0


def test_a_student_that_saw_one_image_is_refused():
    """Two images against one: an error that says how many examples each side is of."""
    teacher, batch = built()
    student = families.spread(hf.ViltModel(families.vilt_config())).eval()
    one = {**batch, "pixel_values": batch["pixel_values"][:, 0]}
    one["pixel_mask"] = batch["pixel_mask"][:, 0]
    distiller = dk.Distiller(student, None, dk.load_recipe("dide_attention"))
    with pytest.raises(
        dk.errors.DistillKitError, match=r"numbers of examples: student \(2, .* teacher \(4, "
    ):
        distiller(one, teacher_signals=signals_of(teacher, batch).signals.detach())
