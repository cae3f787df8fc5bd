"""Several images for an example, and as many as an example has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from distillkit_transformers import Collator
from distillkit_transformers.decoder import _grid

import distillkit as dk

from . import families
from .processors import Processor, byte_tokenizer, cropped, llava, picture, qwen
from .test_collate_prompts import conversations, models


def two_images(count=2):
    pair = [picture(40, 60), picture(50, 30)]
    return [{"text": "left and right", "image": pair} for _ in range(count)]


def vilt_processor(**options):
    return Processor(byte_tokenizer(), hf.ViltImageProcessor(
        size={"shortest_edge": 32}, size_divisor=8, **options,
    ))  # fmt: skip


def test_two_images_of_every_example_have_an_axis_of_their_own():
    batch = Collator(Processor(byte_tokenizer(), cropped()))(two_images())
    assert batch["pixel_values"].shape == (2, 2, 3, 24, 24)
    assert batch["image_boxes"].shape == (2, 2, 4)
    first = Collator(Processor(byte_tokenizer(), cropped()))(
        [{**row, "image": row["image"][0]} for row in two_images()]
    )
    assert (batch["pixel_values"][:, 0] == first["pixel_values"]).all()
    assert (batch["image_boxes"][:, 0] == first["image_boxes"]).all()


def test_nlvr2_runs_through_its_model():
    """ViLT's model of two images takes what the collator makes, masks of the pixels included."""
    vilt = hf.ViltConfig(
        **{**families.IMAGE, "vocab_size": 300, "max_position_embeddings": 40, "num_images": 2,
           "modality_type_vocab_size": 3, "num_labels": 2}
    )  # fmt: skip
    model = hf.ViltForImagesAndTextClassification(vilt).eval()
    batch = Collator(vilt_processor())(two_images())
    examples, images, _, height, width = batch["pixel_values"].shape
    assert batch["pixel_mask"].shape == (examples, images, height, width)
    names = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
    output = model(**{name: batch[name] for name in names})
    assert output.logits.shape == (2, 2)


def test_a_list_of_one_image_keeps_its_axis():
    rows = [{**row, "image": row["image"][:1]} for row in two_images()]
    batch = Collator(Processor(byte_tokenizer(), cropped()))(rows)
    assert batch["pixel_values"].shape == (2, 1, 3, 24, 24)


def test_images_are_read_in_every_form():
    image = picture(40, 40)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    collate = Collator(llava())
    pixels = [
        collate([{"text": "<image> left", "image": form}])["pixel_values"]
        for form in (image, array, tensor, [image], (array,))
    ]
    for other in pixels[1:]:
        torch.testing.assert_close(other, pixels[0])


@pytest.mark.parametrize("counts", [(1, 2), (0, 2), (2, 0, 1), (0, 0)])
def test_unequal_numbers_of_images_inside_texts(counts):
    student, teacher = llava(), qwen()
    rows = [
        {"text": "left " + "<image> and " * count, "image": [picture(40, 40)] * count}
        for count in counts
    ]
    batch = Collator(student, teacher)(rows)
    images = sum(counts)
    for side, processor, tokens in (("student", student, 16), ("teacher", teacher, 4)):
        found = (batch[f"{side}_input_ids"] == processor.image_token_id).sum(1)
        assert found.tolist() == [tokens * count for count in counts]
        if images:
            assert batch[f"{side}_image_boxes"].shape == (images, 4)
    if images:
        assert batch["student_pixel_values"].shape[0] == images
        assert batch["teacher_image_grid_thw"].shape[0] == images


def test_images_of_messages_are_in_order():
    """A column's images and those that a message holds, mixed."""
    small, large = picture(32, 32), picture(32, 96)
    content = [
        {"type": "image"}, {"type": "text", "text": "left"}, {"type": "image", "image": large},
        {"type": "text", "text": "and <image>"},
    ]  # fmt: skip
    processor = qwen()
    batch = Collator(processor)(
        [{"messages": [{"role": "user", "content": content}], "image": [small, small]}]
    )
    shapes = [processor.image_processor([image], return_tensors="pt")["image_grid_thw"]
              for image in (small, large, small)]  # fmt: skip
    assert (batch["image_grid_thw"] == torch.cat(shapes)).all()


@pytest.mark.parametrize("counts", [(2, 2), (0, 2)])
@pytest.mark.parametrize("side", [0, 1])
def test_models_read_several_images(side, counts):
    """As many images as examples, all in one of them, are no grid of every example."""
    student, teacher = models()[side], models()[side]
    processor = (llava, qwen)[side]()
    rows = [
        {"text": "<image> " * count + "which cell is red", "image": [picture(40, 40)] * count}
        for count in counts
    ]
    batch = Collator(processor)(rows)
    term = dk.Term("attention_kl", on="attention.text_to_image")
    distiller = dk.Distiller(student, teacher, dk.Objective([term]))
    assert distiller.check(batch).passed, str(distiller.check(batch))
    loss = distiller(batch).loss
    assert torch.isfinite(loss)
    assert loss > 0


def test_a_grid_belongs_to_examples_of_one_image():
    model = models()[1]
    one = {"text": "<image>", "image": picture(40, 40)}
    two = {"text": "<image><image>", "image": [picture(40, 40)] * 2}
    for rows, grid in (([one, one], (2, 2)), ([{"text": "left"}, two], None)):
        rows = [{"image": None, **row} for row in rows]
        batch = Collator(qwen())(rows)
        assert _grid(model, batch, batch["input_ids"] == 5) == grid


def test_conversations_of_pictures_have_no_extra_axis():
    batch = Collator(llava())(conversations())
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
