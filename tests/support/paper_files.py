"""Tiny checkpoints, processors and data sets of the paper's tasks, in their real formats."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import nn

ANSWERS = ("yes", "no", "two", "red", "left", "blue", "three")
RELATIONS = ("contradiction", "neutral", "entailment")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "is", "the", "?", "cat", "dog", "red",
         "blue", "two", "man", "left", "of", "there", "on", "mat"]  # fmt: skip
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": len(WORDS), "max_position_embeddings": 40, "image_size": 64, "patch_size": 32,
    "hidden_dropout_prob": 0.0,
}  # fmt: skip
CLASSES = {
    "vqa": dict(enumerate(ANSWERS)),
    "ve": dict(enumerate(RELATIONS)),
    "nlvr2": {0: "False", 1: "True"},
}


def reads_two_calls() -> bool:
    """Whether an adapter reads NLVR2's teacher, which encodes one image after the other."""
    from distillkit_transformers import plugin

    return "vilt_of_images" in {spec.name for spec in plugin.distillkit_adapters()}


def make_teacher(task: str, **changes) -> nn.Module:
    """A ViLT of transformers that tells words and patches apart."""
    kind = {
        "vqa": hf.ViltForQuestionAnswering, "ve": hf.ViltForQuestionAnswering,
        "nlvr2": hf.ViltForImagesAndTextClassification,
        "retrieval": hf.ViltForImageAndTextRetrieval, "pretraining": hf.ViltForMaskedLM,
    }[task]  # fmt: skip
    more = {"id2label": CLASSES[task]} if task in CLASSES else {}
    if task == "nlvr2":
        more |= {"num_images": 2, "modality_type_vocab_size": 3}
    model = kind(hf.ViltConfig(**{**SIZES, **more, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def make_processor(folder: Path) -> hf.ViltProcessor:
    """A processor from a vocabulary and a configuration that are written into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    tokenizer = hf.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=40)
    images = hf.ViltImageProcessorPil(size={"shortest_edge": 64}, size_divisor=32)
    return hf.ViltProcessor(images, tokenizer)


def write_checkpoint(folder: Path, task: str, **changes) -> nn.Module:
    """A teacher and its processor, as the Hub has them."""
    teacher = make_teacher(task, **changes)
    teacher.save_pretrained(folder)
    make_processor(folder).save_pretrained(folder)
    return teacher


def make_picture(number: int) -> Image.Image:
    """Some are wide, some high: they fill 2 to 3 by 2 to 3 patches of 32."""
    generator = np.random.default_rng(number)
    width, height = [(64, 64), (96, 64), (64, 96)][number % 3]
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def picture_bytes(number: int) -> dict[str, object]:
    """A picture as Parquet files hold it."""
    buffer = io.BytesIO()
    make_picture(number).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": f"{number}.png"}


def make_text(number: int) -> str:
    """Sentences of 3 to 7 words."""
    generator = np.random.default_rng(100 + number)
    return " ".join(generator.choice(WORDS[5:], 3 + number % 5))


def make_rows(task: str, count: int) -> dict[str, list[object]]:
    """Columns of a data set, named and made as those on the Hub are."""
    numbers = range(count)
    images = [picture_bytes(i) for i in numbers]
    texts = [make_text(i) for i in numbers]
    if task == "vqa":
        votes = [[ANSWERS[i % 4]] * 3 + [ANSWERS[4]] * 6 + ["rare"] for i in numbers]
        answers = [[{"answer": one, "answer_id": k} for k, one in enumerate(row)] for row in votes]
        return {
            "question": texts, "answers": answers, "image": images,
            "image_id": [i // 2 for i in numbers],
        }  # fmt: skip
    if task == "ve":
        order = ("entailment", "neutral", "contradiction")
        labels = [order.index(RELATIONS[i % 3]) for i in numbers]
        return {"image": images, "sentence": texts, "gold_label": labels}
    if task == "nlvr2":
        others = [picture_bytes(i + 1) for i in numbers]
        pairs = [list(pair) for pair in zip(images, others, strict=True)]
        return {"question": texts, "images": pairs, "answer": [str(i % 2 == 0) for i in numbers]}
    captions = [[make_text(7 * i + k) for k in range(1 + i % 3)] for i in numbers]
    return {"image": images, "caption": captions}


def write_data(folder: Path, task: str, train: int = 12, test: int = 6) -> None:
    """Parquet files with the bytes of the pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        pq.write_table(pa.table(make_rows(task, count)), folder / f"{split}-00000-of-00001.parquet")
