"""Workers, pinned memory, transforms of datasets; and examples that cannot be read."""

from __future__ import annotations

import pickle

import pytest
import torch
import transformers as hf
from distillkit_transformers import Collator
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

import distillkit as dk

from .processors import Processor, byte_tokenizer, llava, picture, qwen, squares
from .test_collate_prompts import conversation, conversations


def apart():
    return Processor(byte_tokenizer(), squares())


def same(one, other):
    assert set(one) == set(other)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=name)


def test_it_is_pickled():
    collate = Collator(llava(), qwen())
    same(pickle.loads(pickle.dumps(collate))(conversations()), collate(conversations()))


def test_workers_that_are_spawned():
    collate = Collator(llava())
    rows = conversations() * 2
    loader = DataLoader(
        rows, batch_size=2, collate_fn=collate, num_workers=2, multiprocessing_context="spawn"
    )
    batches = list(loader)
    assert len(batches) == 2
    for batch in batches:
        same(batch, collate(rows[:2]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")
def test_pinned_memory():
    loader = DataLoader(
        conversations(), batch_size=2, collate_fn=Collator(llava(), qwen()), pin_memory=True
    )
    for batch in loader:
        assert type(batch) is dict
        assert all(value.is_pinned() for value in batch.values())


def test_every_entry_can_be_pinned(monkeypatch):
    """The loader's own walk through a batch reaches every tensor, also where there is no GPU."""
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned = []

    def pin(tensor, device=None):
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = Collator(llava(), qwen())(conversations())
    moved = pin_memory(batch)
    assert type(moved) is dict
    assert list(moved) == list(batch)
    assert len(pinned) == len(batch)


class Table:
    """Columns with a transform, which gets a dictionary of lists, as those of `datasets` do."""

    def __init__(self, rows):
        self.columns = {name: [row[name] for row in rows] for name in rows[0]}
        self.transform = dict

    def with_transform(self, transform):
        self.transform = transform
        return self

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, keys):
        one = isinstance(keys, int)
        numbers = [keys] if one else keys
        picked = {name: [values[n] for n in numbers] for name, values in self.columns.items()}
        batch = self.transform(picked)
        return {name: values[0] for name, values in batch.items()} if one else batch


def test_a_transform_of_a_dataset():
    collate = Collator(llava(), qwen())
    rows = conversations() * 2
    table = Table(rows).with_transform(collate.transform)
    batches = BatchSampler(SequentialSampler(table), 2, drop_last=False)
    loader = DataLoader(table, batch_size=None, sampler=batches)
    for batch in loader:
        same(batch, collate(rows[:2]))


def test_a_dataset_without_a_transform():
    collate = Collator(llava(), qwen())
    table = Table(conversations())
    for batch in DataLoader(table, batch_size=2, collate_fn=collate):
        same(batch, collate(conversations()))


def test_columns_of_a_dataset_name_what_is_read():
    assert Collator(llava()).columns == ("text", "image", "messages")
    collate = Collator(llava(), messages="chat", image="images", text="q", answer="a")
    assert collate.columns == ("q", "images", "chat", "a")


IMAGE = picture(40, 40)
TEXT = {"text": "<image> left", "image": IMAGE}
CHAT = {"messages": conversation("is red ?", "yes"), "image": IMAGE}


def spoken(content):
    return {"messages": [{"role": "user", "content": content}], "image": IMAGE}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one example"),
        ([TEXT, {"text": "<image> left"}],
         "example 1, entry 'text': 1 image placeholder and 0 images: write '<image>'"),
        ([TEXT, {"text": "<image><image>", "image": IMAGE}],
         "example 1, entry 'text': 2 image placeholders and 1 image: "),
        ([TEXT, {"text": "left", "image": IMAGE}],
         "example 1, entry 'text': the student's text has 0 of '<image>' for 1 images"),
        ([TEXT, {"txet": "a", "image": IMAGE}],
         "example 1, entry 'txet': it is in only one of this example and example 0"),
        ([{"sentence": "a", "image": IMAGE}],
         r"example 0 has no 'text'; it has 'sentence', 'image' .*Collator\(\.\.\., text=\.\.\.\)"),
        ([TEXT, {**TEXT, "text": ["a"]}], "example 1, entry 'text', is to be a string; got list"),
        ([CHAT, spoken("<image><image>")],
         "example 1, entry 'messages': 2 image placeholders and 1 image"),
        ([CHAT, spoken([{"type": "text", "text": "a"}])],
         "example 1, entry 'messages': 0 image placeholders and 1 image"),
        ([spoken([{"type": "video", "video": 1}])],
         "example 0, entry 'messages': a part of a message is .*got .*'video'.*load other media"),
        ([{"messages": "hello"}], "example 0, entry 'messages', is to be a list of messages; got"),
        ([{"messages": []}], "example 0, entry 'messages', holds no message"),
        ([{"messages": ["a"]}], "example 0.*a message is a mapping with 'role'.*got 'a'"),
        ([{**CHAT, "text": None}, {**TEXT, "messages": None}],
         "example 1, entry 'text': example 0 has 'messages' instead"),
        ([CHAT, spoken("<image> left")],
         r"example 1, entry 'messages': it has no answer.*labels=False"),
        ([{**CHAT, "labels": 1}], "example 0, entry 'labels': the collator makes an entry"),
        ([{**TEXT, "position_ids": [0]}],
         "example 0, entry 'position_ids': packed or tokenized examples are not taken"),
        ([{**TEXT, "input_ids": [0]}], "example 0, entry 'input_ids': packed or tokenized"),
    ],
)  # fmt: skip
def test_an_example_that_cannot_be_read(rows, message):
    with pytest.raises(dk.errors.SignalError, match=message):
        Collator(llava())(rows)


def test_what_a_side_cannot_write_is_told_with_the_side():
    with pytest.raises(dk.errors.SignalError, match="example 0, entry 'messages': the teacher's "
                       "processor, QwenProcessor, has no chat template: set"):  # fmt: skip
        Collator(llava(), qwen(None))([CHAT])
    with pytest.raises(dk.errors.SignalError, match="the student's processor, Processor, has no"):
        Collator(apart())([CHAT])
    blind = llava().chat_template.replace("<image>", "")
    with pytest.raises(dk.errors.SignalError, match="the student's text has 0 of '<image>' for 1"):
        Collator(llava(blind))([CHAT])
    dropping = llava().chat_template.replace("{{ part['text'] }}", "{{ part['text'] | upper }}")
    with pytest.raises(dk.errors.SignalError, match="the student's chat template changes, moves"):
        Collator(llava(dropping))([CHAT])
    late = "{{ messages | length }}" + llava().chat_template
    longer = [*conversation("is red ?", "yes"), *spoken("left")["messages"]]
    row = {"messages": [*longer, {"role": "assistant", "content": "no"}], "image": IMAGE}
    with pytest.raises(dk.errors.SignalError, match="entry 'messages', message 1: the student's"):
        Collator(llava(late))([row])


def test_images_that_a_processor_without_image_tokens_cannot_stack():
    one, two = {"text": "a", "image": IMAGE}, {"text": "a", "image": [IMAGE, IMAGE]}
    message = "example 1, entry 'image', has {} images, and example 0 has 1: the student's"
    with pytest.raises(dk.errors.SignalError, match=message.format(2)):
        Collator(apart())([one, two])
    with pytest.raises(dk.errors.SignalError, match=message.format(0)):
        Collator(apart())([one, {"text": "a"}])


def test_a_cut_through_an_image_names_the_example():
    short = {"text": "left", "image": None}
    with pytest.raises(dk.errors.SignalError, match="example 1, entry 'text': max_length=7 cuts "
                       "through the student's image tokens: raise"):  # fmt: skip
        Collator(llava(), max_length=7)([short, TEXT])


class Shouting(hf.LlavaProcessor):
    """It changes the text beside its image tokens, so that characters are elsewhere."""

    def __call__(self, images=None, text=None, **options):
        return super().__call__(images=images, text=[f"red {one}" for one in text], **options)


def test_a_processor_that_changes_the_text():
    made = llava()
    processor = Shouting(
        made.image_processor, made.tokenizer, patch_size=8, num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    with pytest.raises(dk.errors.OptionError, match="student's processor, Shouting, writes image"):
        Collator(processor)([TEXT])


def test_an_answer_is_a_column_of_texts():
    row = {**TEXT, "answer": 3}
    with pytest.raises(dk.errors.SignalError, match="entry 'answer', is to be a string; got int"):
        Collator(llava(), answer="answer")([row])
    with pytest.raises(dk.errors.SignalError, match=r"has no 'answer'; .*answer=\.\.\."):
        Collator(llava(), answer="answer")([TEXT])


def test_columns_of_unequal_length():
    with pytest.raises(dk.errors.SignalError, match="columns are to have one length; got"):
        Collator(llava()).transform({"text": ["a"], "image": []})
