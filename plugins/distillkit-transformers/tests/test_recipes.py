"""The attention recipes between families, in three lines: with the same tokens and with others."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import distillkit as dk

from . import families

TEXTS = ("which cell is red", "is it top")
TEACHERS = {
    "flava": "dide_attention",
    "bridgetower": "dide_attention",
    "blip_matching": "dide_text_to_image",
    "paligemma": "dide_attention",
}


def tokenized(cuts):
    """ids, mask and offsets of both texts, cut where ``cuts(word)`` says; [CLS] and [SEP] around."""
    rows = []
    for text in TEXTS:
        tokens, start = [(1, 0, 0)], 0
        for word in text.split():
            pieces = cuts(word)
            for piece in pieces:
                tokens.append((5 + sum(map(ord, piece)) % 80, start, start + len(piece)))
                start += len(piece)
            start += 1
        rows.append([*tokens, (2, 0, 0)])
    length = max(map(len, rows))
    padded = torch.tensor([row + [(0, 0, 0)] * (length - len(row)) for row in rows])
    seen = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": padded[..., 0], "attention_mask": seen, "offset_mapping": padded[..., 1:]}


def whole(word):
    return [word]


def halves(word):
    return [word[:2], word[2:]] if len(word) > 2 else [word]


def named(side, entries):
    return {f"{side}_{name}": value for name, value in entries.items()}


def teacher_and_batch(name):
    """The teacher and its side of the batch: whole words, 4 x 4 patches."""
    model, batch = families.FAMILIES[name]()
    words = tokenized(whole)
    if name == "paligemma":  # the image's placeholders stand before the words; no [CLS]
        words = {key: value[:, 1:] for key, value in words.items()}
        image = torch.full((2, 16), 99)
        nowhere = torch.zeros(2, 16, 2, dtype=torch.long)
        words["offset_mapping"] = torch.cat([nowhere, words["offset_mapping"]], 1)
        words["input_ids"] = torch.cat([image, words["input_ids"]], 1)
        words["attention_mask"] = torch.cat([torch.ones_like(image), words["attention_mask"]], 1)
        words["token_type_ids"] = torch.zeros_like(words["input_ids"])
    return families.spread(model), {"pixel_values": batch["pixel_values"], **words}


def same_tokens(name):
    """A student that sees what the teacher sees, token by token."""
    if name == "paligemma":  # neither has a [CLS] of its own
        text = {**families.TEXT, "max_position_embeddings": 40, "projection_size": 32}
        config = hf.SiglipConfig(text_config=text, vision_config=families.IMAGE)
        return hf.SiglipModel(config), {k: v[:, 1:] for k, v in tokenized(whole).items()}
    return families.vision_text_dual_encoder()[0], tokenized(whole)


def other_tokens():
    """A student with another tokenizer and 3 x 3 patches, of a crop of the picture."""
    text = {**families.TEXT, **families.PLACES, "eos_token_id": 2, "bos_token_id": 1}
    vision = {**families.IMAGE, "image_size": 24}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    words = tokenized(halves)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.9, 0.9]])
    return hf.CLIPModel(config), {
        "pixel_values": torch.rand(2, 3, 24, 24),
        "image_boxes": boxes,
        **words,
    }


def trained(distiller, batch, steps=4):
    optimizer = torch.optim.Adam(distiller.parameters(), lr=3e-3)
    values = []
    for step in range(steps):
        result = distiller(batch, progress=step / steps)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(result.loss.item())
    return values


@pytest.mark.parametrize("name", TEACHERS)
def test_the_same_tokens(name):
    teacher, of_teacher = teacher_and_batch(name)
    student, words = same_tokens(name)
    batch = {**of_teacher, **named("student", words)}
    batch.pop("student_offset_mapping"), batch.pop("offset_mapping")

    distiller = dk.Distiller(student, teacher, dk.load_recipe(TEACHERS[name]))
    checked = distiller.check(batch)
    assert checked.passed, str(checked)
    values = trained(distiller, batch)
    assert values[-1] < values[0]


@pytest.mark.parametrize("name", TEACHERS)
def test_another_tokenizer_and_another_grid(name):
    teacher, of_teacher = teacher_and_batch(name)
    of_teacher["image_boxes"] = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    student, of_student = other_tokens()
    batch = {**named("teacher", of_teacher), **named("student", of_student)}

    distiller = dk.Distiller(student, teacher, dk.load_recipe(TEACHERS[name]))
    checked = distiller.check(batch)
    assert checked.passed, str(checked)
    values = trained(distiller, batch)
    assert values[-1] < values[0]

    result = distiller(batch)
    theirs, ours = (
        side["attention.text_to_image"][-1].shape for side in (result.teacher, result.student)
    )
    assert ours[2] != theirs[2]
    assert ours[3] != theirs[3]
    result.loss.backward()
    for tower in ("text_model", "vision_model"):
        grads = [p.grad for p in student.get_submodule(tower).encoder.layers[0].parameters()]
        assert any(grad is not None and grad.any() for grad in grads)


def test_without_extents_the_check_names_what_is_missing():
    teacher, of_teacher = teacher_and_batch("flava")
    student, of_student = other_tokens()
    del of_student["image_boxes"]
    batch = {**named("teacher", of_teacher), **named("student", of_student)}
    distiller = dk.Distiller(student, teacher, "dide_text_to_image")
    checked = distiller.check(batch)
    assert not checked.passed
    assert "image_boxes" in str(checked)
    with pytest.raises(dk.errors.ShapeError, match="image_boxes"):
        distiller(batch)


def test_without_an_aligner_the_check_names_overlap():
    teacher, of_teacher = teacher_and_batch("flava")
    student, of_student = other_tokens()
    batch = {**named("teacher", of_teacher), **named("student", of_student)}
    term = {"loss": "attention_kl", "on": "attention.text_to_image"}
    distiller = dk.Distiller(student, teacher, dk.Recipe(name="plain", terms=[term]))
    assert 'align = ["overlap"]' in str(distiller.check(batch))
    with pytest.raises(dk.errors.ShapeError, match=r'unequal keys.*align = \["overlap"\]'):
        distiller(batch)


@pytest.mark.parametrize(
    ("name", "recipe", "why"),
    [
        ("blip_matching", "dide_attention", "never see a word"),
        ("llava", "dide_attention", "image tokens come before the words"),
        ("blip_2_matching", "dide_text_to_image", "attention.query_to_image"),
        ("blip_answering", "dide", "word by word"),
        ("flava", "dide", "take the class of the family with a head"),
    ],
)
def test_a_signal_that_a_family_cannot_have_says_why(name, recipe, why):
    teacher, batch = families.FAMILIES[name]()
    student, _ = families.vision_text_dual_encoder()
    student.forward = lambda input_ids, pixel_values, attention_mask=None: {
        "logits": torch.zeros(2, 3, requires_grad=True),
        "text": student.text_model(input_ids, attention_mask),
        "image": student.vision_model(pixel_values),
    }
    own = families.pair()
    if "labels" in batch:  # BLIP's answers are inputs of its decoder, not only labels
        batch = {**batch, "teacher_labels": batch["labels"]}
    batch = {**batch, **named("student", own)}
    ignore = [key for key in batch if key not in ("input_ids", "pixel_values")]
    distiller = dk.Distiller(student, teacher, recipe, ignore=ignore)
    with pytest.raises(dk.errors.SignalError, match=why):
        distiller(batch)
    assert why in str(distiller.check(batch))


def test_paligemma_without_token_types_is_causal_and_no_row_counts():
    """A padded batch without token_type_ids: the model itself masks what comes later."""
    teacher, of_teacher = teacher_and_batch("paligemma")
    del of_teacher["token_type_ids"]
    student, words = same_tokens("paligemma")
    batch = {**of_teacher, **named("student", words)}
    batch.pop("student_offset_mapping"), batch.pop("offset_mapping")
    distiller = dk.Distiller(student, teacher, "dide_attention")
    with pytest.raises(dk.errors.ShapeError, match="image_to_text: no row of this batch counts"):
        distiller(batch)
