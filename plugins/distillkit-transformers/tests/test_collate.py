"""Real processors, built offline: where tokens lie, and what an image processor shows."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from distillkit_transformers.collate import Collator, shown_boxes, without_spaces
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import distillkit as dk

from .processors import Processor, cropped, picture, squares

TEXTS = ["which cell is red", "is the red cell on top ?"]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "which",
    "cell",
    "is",
    "red",
    "the",
    "on",
    "top",
    "?",
]


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(WORDS), encoding="utf-8")
    return hf.BertTokenizer(vocab=str(path))


@pytest.fixture(scope="module")
def byte_pairs():
    """Bytes and a few merges: it cuts words elsewhere, and a piece owns the space before it."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=270, show_progress=False, special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(TEXTS, trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def examples():
    return [
        {"text": text, "image": picture(*size), "answer": i}
        for i, (text, size) in enumerate(zip(TEXTS, [(40, 60), (50, 30)], strict=True))
    ]


def test_one_processor_keeps_its_names(wordpiece):
    batch = Collator(Processor(wordpiece, squares()))(examples())
    assert {"input_ids", "attention_mask", "pixel_values", "offset_mapping", "image_boxes"} <= set(
        batch
    )
    assert batch["answer"].tolist() == [0, 1]
    assert batch["image_boxes"].tolist() == [[0, 0, 1, 1]] * 2
    pieces = [TEXTS[1][a:b] for a, b in batch["offset_mapping"][1].tolist()]
    assert pieces == ["", "is", "the", "red", "cell", "on", "top", "?", ""]


def test_two_processors_have_prefixes_and_agree_on_the_words(wordpiece, byte_pairs):
    collate = Collator(Processor(byte_pairs, cropped()), Processor(wordpiece, squares()))
    batch = collate(examples())
    assert "student_input_ids" in batch
    assert "teacher_pixel_values" in batch
    assert "input_ids" not in batch
    for row, text in enumerate(TEXTS):
        for side in ("student", "teacher"):
            places = batch[f"{side}_offset_mapping"][row].tolist()
            pieces = [text[a:b] for a, b in places if b > a]
            assert "".join(pieces) == text.replace(" ", "")
    assert batch["student_input_ids"].shape[1] != batch["teacher_input_ids"].shape[1]


def test_spaces_belong_to_no_token():
    offsets = torch.tensor([[[0, 3], [3, 6], [6, 8], [8, 9]]])
    assert without_spaces(offsets, ["the cat   "]).tolist() == [[[0, 3], [4, 6], [6, 7], [9, 9]]]


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (33, 33), (97, 32)])
@pytest.mark.parametrize(("edge", "crop"), [(32, 24), (32, 32), (48, 20)])
def test_boxes_are_what_the_pixels_show(size, edge, crop):
    """The picture's colours say where each pixel comes from."""
    processor = cropped(edge, crop)
    pixels = processor([picture(*size)], return_tensors="pt")["pixel_values"][0]
    top, left, bottom, right = shown_boxes(processor, torch.tensor([size]))[0].tolist()
    found = pixels[0, :, 0], pixels[1, 0]
    for values, start, stop in ((found[0], top, bottom), (found[1], left, right)):
        inner = values[2:-2]  # at the edges the resampling mirrors
        centres = torch.linspace(start, stop, crop + 1)
        centres = ((centres[:-1] + centres[1:]) / 2)[2:-2]
        assert (inner - centres).abs().max() < 0.03


def test_a_crop_larger_than_the_image_reaches_beyond_it():
    boxes = shown_boxes(cropped(20, 24), torch.tensor([[40, 40]]))
    assert boxes[0, 0] < 0
    assert boxes[0, 2] > 1


def test_a_text_longer_than_the_students_maximum_is_cut_and_carried(wordpiece, byte_pairs):
    """Only the characters that both sides have are compared."""
    from . import families

    collate = Collator(
        Processor(byte_pairs, cropped()), Processor(wordpiece, squares(32)), max_length=7
    )
    batch = collate(examples())
    assert batch["student_input_ids"].shape[1] == 7
    teacher, _ = families.vilt_answering()
    text = {**families.TEXT, "vocab_size": 300, "max_position_embeddings": 7,
            "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}  # fmt: skip
    config = hf.CLIPConfig(
        text_config=text, vision_config={**families.IMAGE, "image_size": 24}, projection_dim=16
    )
    student = hf.CLIPModel(config)
    distiller = dk.Distiller(
        student, teacher, "dide_attention", ignore=["answer", "student_token_type_ids"]
    )
    assert distiller.check(batch).passed, str(distiller.check(batch))
    result = distiller(batch)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert student.vision_model.encoder.layers[0].self_attn.q_proj.weight.grad.any()


def test_what_cannot_be_collated_says_why(wordpiece):
    with pytest.raises(
        ValueError, match="the teacher's processor, Processor, has no tokenizer|no image_processor"
    ):
        Collator(Processor(wordpiece, squares()), type("Processor", (), {"tokenizer": 1})())
    llava = Processor(wordpiece, squares())
    llava.image_token = "<image>"
    with pytest.raises(ValueError, match="writes image tokens into the text"):
        Collator(llava)
    slow = Processor(type("Slow", (), {"is_fast": False})(), squares())
    with pytest.raises(ValueError, match="is a slow one"):
        Collator(slow)
