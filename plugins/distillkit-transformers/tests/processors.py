"""Real processors of transformers, from tiny vocabularies: nothing is downloaded."""

from __future__ import annotations

import numpy as np
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.processing_utils import ProcessorMixin

LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    "which", "cell", "is", "red", "user", "assistant", "USER", "ASSISTANT", ":", "?", "left",
    "right", "and", "top", "the", "yes", "no",
]  # fmt: skip


def picture(height, width):
    """Red rises from top to bottom, green from left to right."""
    rows = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, 1)
    columns = np.linspace(0, 255, width, dtype=np.uint8)[None].repeat(height, 0)
    return Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], -1))


class Processor:
    """A tokenizer and an image processor, as every processor of transformers has them."""

    def __init__(self, tokenizer, image_processor):
        self.tokenizer, self.image_processor = tokenizer, image_processor


def squares(size=24, **more):
    return hf.ViTImageProcessor(size={"height": size, "width": size}, **more)


def cropped(edge=32, crop=24):
    return hf.CLIPImageProcessor(
        size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop},
        do_normalize=False,
    )  # fmt: skip


def word_tokenizer(**options):
    """LLaVA's side: whole words."""
    special = ["<pad>", "<unk>", "</s>", "<image>"]
    words = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_input_names=["input_ids", "attention_mask"], **options,
    )  # fmt: skip


def byte_tokenizer(**options):
    """Qwen-VL's side: every byte a token, spaces included."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
               "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
    words = {word: number for number, word in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>",
        model_input_names=["input_ids", "attention_mask"], **options,
    )  # fmt: skip
    made.add_special_tokens({"additional_special_tokens": special[1:]})
    return made


class QwenProcessor(hf.Qwen2VLProcessor):
    """Qwen2-VL's without videos, whose processor needs torchvision."""

    video_token = None

    def __init__(self, image_processor, tokenizer, chat_template=None):
        self.image_token = "<|image_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def llava(template=LLAVA_TEMPLATE, **options):
    """16 tokens for each image."""
    return hf.LlavaProcessor(
        cropped(32, 32), word_tokenizer(**options), patch_size=8, num_additional_image_tokens=1,
        vision_feature_select_strategy="default", chat_template=template,
    )  # fmt: skip


def qwen(template=QWEN_TEMPLATE, **options):
    """4 tokens for each square image."""
    pixels = hf.Qwen2VLImageProcessor(
        size={"shortest_edge": 32 * 32, "longest_edge": 32 * 32}, patch_size=8, merge_size=2
    )
    return QwenProcessor(pixels, byte_tokenizer(**options), chat_template=template)
