"""Real runs for the tests of logs and reports: tiny transformers models, trained for a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as hf

import distillkit as dk

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TEXT = {**SMALL, "vocab_size": 100, "max_position_embeddings": 16}
IMAGE = {**SMALL, "image_size": 16, "patch_size": 8}
TO_IMAGE, TO_TEXT = "attention_kl/attention.text_to_image", "attention_kl/attention.image_to_text"
UNTIL = {"start": 4.0, "stop": 0.0, "until": 0.5}


def pair(seed=0):
    torch.manual_seed(seed)
    towers = hf.ViTConfig(**IMAGE), hf.BertConfig(**TEXT)
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(*towers, projection_dim=8)
    teacher = hf.ViltModel(hf.ViltConfig(**{**TEXT, **IMAGE, "initializer_range": 0.3}))
    return hf.VisionTextDualEncoderModel(config), teacher


def recipe():
    return dk.load_recipe("dide_attention").override({f"{TO_IMAGE}.weight": UNTIL})


def examples(count=4, words=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(5, 100, (words,), generator=generator),
            "attention_mask": torch.ones(words, dtype=torch.long),
            "pixel_values": torch.rand(3, 16, 16, generator=generator),
        }
        for _ in range(count)
    ]


def batch(count=4, seed=1, words=5):
    made = examples(count, words, seed)
    return {name: torch.stack([one[name] for one in made]) for name in made[0]}


def distiller(seed=0):
    return dk.Distiller(*pair(seed), recipe())


def watch(**changes):
    words = [["a", "red", "dog", "sits", "."]] * 3
    given = {"batch": batch(3, seed=9), "every": 4, "words": words, "images": "pixel_values"}
    return dk.Watch(**{**given, **changes})


def train(log, made, steps, *, start=0, whole=12):
    """A loop of one's own, with one line for the log."""
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    results = []
    for step in range(start + 1, start + steps + 1):
        result = made(batch(seed=step), progress=min(1.0, step / whole))
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log.write(result, step=step)
        results.append(result)
    return results


def lines(folder, kind=None, file="run.jsonl"):
    held = [
        json.loads(line) for line in Path(folder, file).read_text(encoding="utf-8").splitlines()
    ]
    return [one for one in held if kind in (None, one["kind"])]
