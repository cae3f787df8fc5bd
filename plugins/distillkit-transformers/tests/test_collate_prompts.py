"""Conversations and placeholders: each side's own words, one count of characters, labels."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from distillkit_transformers import Collator
from distillkit_transformers.rendering import Rendering

import distillkit as dk

from . import families
from .processors import LLAVA_TEMPLATE, Processor, byte_tokenizer, llava, picture, qwen, squares

QUESTIONS = ["which cell is red ?", "is user red ?"]
ANSWERS = ["the left cell", "yes"]


def conversation(question, answer, image=None):
    shown = {"type": "image"} if image is None else {"type": "image", "image": image}
    asked = {"role": "user", "content": [shown, {"type": "text", "text": question}]}
    return [asked, {"role": "assistant", "content": answer}]


def conversations():
    pairs = zip(QUESTIONS, ANSWERS, strict=True)
    return [{"messages": conversation(*pair), "image": picture(40, 40)} for pair in pairs]


def learned(tokenizer, labels):
    """What the labels spell, without the spaces that a tokenizer of words puts in between."""
    return [tokenizer.decode(row[row != -100]).replace(" ", "") for row in labels]


def pieces(text, extents):
    return "".join(text[start:stop] for start, stop in extents.tolist())


def said(prompt, answer):
    """What places count in: the passages of a conversation, one character apart."""
    return f"{prompt} {answer}"


def both_agree(batch, texts):
    for row, text in enumerate(texts):
        for side in ("student", "teacher"):
            found = pieces(text, batch[f"{side}_offset_mapping"][row])
            assert found == text.replace(" ", ""), (side, row)


@pytest.mark.parametrize("student_pads", ["left", "right"])
@pytest.mark.parametrize("teacher_pads", ["left", "right"])
def test_a_conversation_in_each_sides_own_template(student_pads, teacher_pads):
    student, teacher = llava(padding_side=student_pads), qwen(padding_side=teacher_pads)
    batch = Collator(student, teacher)(conversations())
    both_agree(batch, map(said, QUESTIONS, ANSWERS))
    assert learned(student.tokenizer, batch["labels"]) == ["theleftcell</s>", "yes</s>"]
    ends = ["theleftcell<|im_end|>", "yes<|im_end|>"]
    assert learned(teacher.tokenizer, batch["teacher_labels"]) == ends
    written = teacher.tokenizer.decode(
        batch["teacher_input_ids"][1][batch["teacher_attention_mask"][1] != 0]
    )
    image = "<|vision_start|>" + 4 * "<|image_pad|>" + "<|vision_end|>"
    assert written == (
        f"<|im_start|>user\n{image}is user red ?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    )
    padded = {"student": student_pads, "teacher": teacher_pads}
    for side, pads in padded.items():
        mask = batch[f"{side}_attention_mask"]
        labels = batch["labels" if side == "student" else "teacher_labels"]
        edge = 0 if pads == "left" else -1
        assert mask[:, edge].min() == 0
        assert mask.sum(1).max() == mask.shape[1]
        assert (labels[mask == 0] == -100).all()
        assert (batch[f"{side}_offset_mapping"][mask == 0] == 0).all()
        ids = batch[f"{side}_input_ids"]
        assert (labels[labels != -100] == ids[labels != -100]).all()


def test_the_processors_own_call_gives_the_same_tokens():
    for processor in (llava(), qwen()):
        rows = conversations()
        batch = Collator(processor)(rows)
        messages = [conversation(*pair, row["image"])
                    for *pair, row in zip(QUESTIONS, ANSWERS, rows, strict=True)]  # fmt: skip
        for message in messages:
            message[1]["content"] = [{"type": "text", "text": message[1]["content"]}]
        wanted = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        )  # fmt: skip
        for name in wanted:
            torch.testing.assert_close(batch[name], wanted[name], msg=name)


def test_every_answer_of_a_longer_conversation_is_learned():
    messages = conversation("which cell ?", "left")
    messages += [{"role": "user", "content": "is the top red ?"},
                 {"role": "assistant", "content": "no"}]  # fmt: skip
    student, teacher = llava(), qwen()
    batch = Collator(student, teacher)([{"messages": messages, "image": [picture(40, 40)]}])
    assert learned(student.tokenizer, batch["labels"]) == ["left</s>no</s>"]
    wanted = ["left<|im_end|>no<|im_end|>"]
    assert learned(teacher.tokenizer, batch["teacher_labels"]) == wanted
    both_agree(batch, ["which cell ? left is the top red ? no"])


def test_a_conversation_to_be_continued_has_no_labels():
    messages = conversation(QUESTIONS[0], "")[:1]
    processor = qwen()
    batch = Collator(processor)([{"messages": messages, "image": picture(40, 40)}])
    assert "labels" not in batch
    assert processor.tokenizer.decode(batch["input_ids"][0]).endswith("<|im_start|>assistant\n")


def test_placeholders_of_messages_in_every_form():
    """A marker in a string, a part that holds its image, and one that takes the next."""
    image = picture(40, 40)
    forms = [
        {"messages": [{"role": "user", "content": "<image>\nis red ?"}], "image": image},
        {"messages": [{"role": "user", "content": [
            {"type": "image", "image": image, "text": None},
            {"type": "text", "text": "is red ?", "image": None}]}]},
        {"messages": [{"role": "user", "content": [
            {"type": "image"}, {"type": "text", "text": "is red ?"}]}], "image": [image]},
    ]  # fmt: skip
    batch = Collator(llava(), qwen())(forms)
    for side in ("student", "teacher"):
        ids = batch[f"{side}_input_ids"]
        assert (ids == ids[:1]).all()


@pytest.mark.parametrize("template", ["of the model", None])
def test_placeholders_of_a_text_become_each_sides_own(template):
    student = llava() if template else llava(None)
    teacher = qwen() if template else qwen(None)
    rows = [{"text": f"<image> {question}", "reply": answer, "image": picture(40, 40), "n": n}
            for n, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]  # fmt: skip
    batch = Collator(student, teacher, answer="reply")(rows)
    texts = [f"{row['text']} {row['reply']}" for row in rows]
    for row, text in enumerate(texts):
        for side in ("student", "teacher"):
            found = pieces(text, batch[f"{side}_offset_mapping"][row])
            assert found == text.removeprefix("<image>").replace(" ", "")
    assert learned(student.tokenizer, batch["labels"]) == ["theleftcell</s>", "yes</s>"]
    ends = ["theleftcell<|im_end|>", "yes<|im_end|>"]
    assert learned(teacher.tokenizer, batch["teacher_labels"]) == ends
    ids = batch["teacher_input_ids"][0].tolist()
    around = teacher.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    assert [number in ids for number in around] == [bool(template)] * 2
    assert batch["n"].tolist() == [0, 1]


def test_a_side_without_image_tokens_reads_the_text_around_the_placeholder():
    rows = [{"text": "<image> is red ?", "image": picture(40, 40)}]
    batch = Collator(Processor(byte_tokenizer(), squares()), llava())(rows)
    assert pieces("<image> is red ?", batch["student_offset_mapping"][0]) == "isred?"
    assert pieces("<image> is red ?", batch["teacher_offset_mapping"][0]) == "isred?"
    assert batch["student_pixel_values"].shape == (1, 3, 24, 24)


def test_a_template_that_strips_and_a_role_that_is_said():
    """The word of a role is not taken for the same word of the text; places skip the stripped."""
    stripping = LLAVA_TEMPLATE.replace("part['text'] }}", "part['text'] | trim }}")
    messages = [{"role": "user", "content": "  USER <image> left  "}]
    batch = Collator(llava(), qwen())([{"messages": messages, "image": picture(40, 40)}])
    student, teacher = (batch[f"{side}_offset_mapping"][0] for side in ("student", "teacher"))
    assert pieces("  USER   left  ", student) == pieces("  USER   left  ", teacher) == "USERleft"
    messages = [{"role": "user", "content": "  USER left  "}]
    batch = Collator(llava(stripping), qwen())([{"messages": messages}])
    student, teacher = (batch[f"{side}_offset_mapping"][0] for side in ("student", "teacher"))
    assert pieces("  USER left  ", student) == pieces("  USER left  ", teacher) == "USERleft"


def test_labels_are_left_out_on_demand():
    batch = Collator(llava(), qwen(), labels=False)(conversations())
    assert not {"labels", "teacher_labels"} & set(batch)


def test_a_cut_between_words_keeps_what_is_left():
    student = llava()
    batch = Collator(student, max_length=26)(conversations())
    assert batch["input_ids"].shape[1] == 26
    assert learned(student.tokenizer, batch["labels"]) == ["the", "yes</s>"]


def test_tokens_without_width():
    """A space of no width is part of an answer; the tokenizer's own tokens are not, but its end."""
    rendering = Rendering("USER: 7 BOT: 5", (), ((12, 14),))
    offsets = torch.tensor([[0, 0], [0, 5], [6, 7], [7, 12], [13, 13], [13, 14], [0, 0], [0, 0]])
    ids = torch.tensor([1, 10, 11, 12, 13, 14, 2, 2])
    mask = torch.tensor([1, 1, 1, 1, 1, 1, 1, 0])
    labels = rendering.labels(ids, offsets, mask, 2)
    assert labels.tolist() == [-100] * 4 + [13, 14, 2, -100]
    assert rendering.labels(ids, offsets, mask, None).tolist() == [-100] * 4 + [13, 14, -100, -100]


def models():
    student = hf.LlavaForConditionalGeneration(hf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **families.IMAGE},
        text_config={"model_type": "llama", **families.LLAMA}, image_token_id=3,
        vision_feature_layer=-1,
    ))  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    text = {**families.LLAMA, "vocab_size": 300, "rope_parameters": rope, "head_dim": 8,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    vision = {**families._QWEN, "window_size": 16, "fullatt_block_indexes": [1]}
    teacher = hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=5, video_token_id=6,
        vision_start_token_id=3, vision_end_token_id=4,
    ))  # fmt: skip
    return student, teacher


@pytest.mark.parametrize("pads", [("left", "right"), ("right", "left")])
def test_two_models_are_compared_on_what_both_read(pads):
    student, teacher = models()
    collate = Collator(llava(padding_side=pads[0]), qwen(padding_side=pads[1]))
    batch = collate(conversations())
    term = dk.Term("attention_kl", on="attention.text_to_image", align=["overlap"])
    distiller = dk.Distiller(student, teacher, dk.Objective([term]))
    assert distiller.check(batch).passed, str(distiller.check(batch))
    result = distiller(batch)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert result.loss > 0
