"""Families of transformers that no adapter knows, from adapter files alone: no Python."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import distillkit as dk
from distillkit import testing

WIDTH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}

FLORENCE = """
inputs = { input_ids = "prompt_ids", attention_mask = "prompt_mask", pixel_values = "pixel_values", decoder_input_ids = "answer_ids" }
streams = { joint = "model.language_model.encoder.layers.*.self_attn" }
logits = "logits"

[[tokens.joint]]
modality = "image"
where = "prompt_ids"
equals = 99

[[tokens.joint]]
modality = "text"
length = "prompt_ids"
mask = "prompt_mask"
"""

ALTCLIP = """
inputs = { input_ids = "input_ids", attention_mask = "attention_mask", pixel_values = "pixel_values" }
streams = { text = "text_model.**.attention.self", image = "vision_model.encoder.layers.*.self_attn" }
embedding = { text = "text_embeds", image = "image_embeds" }

[[tokens.text]]
modality = "text"
length = "input_ids"
mask = "attention_mask"
special = [0]

[[tokens.image]]
modality = "image"
special = [0]
grid = [4, 4]
"""


def florence():
    text = {
        "model_type": "bart", "vocab_size": 100, "d_model": 32, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
    }  # fmt: skip
    vision = {
        "depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1),
        "patch_prenorm": (False, True), "embed_dim": (16, 32), "num_heads": (2, 4),
        "num_groups": (2, 4), "window_size": 4, "projection_dim": 32, "drop_path_rate": 0.0,
    }  # fmt: skip
    config = hf.Florence2Config(text_config=text, vision_config=vision, image_token_id=99)
    return hf.Florence2ForConditionalGeneration(config)


def altclip():
    text = {**WIDTH, "vocab_size": 100, "max_position_embeddings": 40, "project_dim": 16}
    vision = {**WIDTH, "image_size": 32, "patch_size": 8}
    return hf.AltCLIPModel(
        hf.AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    )


def words():
    seen = (torch.arange(7) < torch.tensor([[7], [5]])).long()
    return {
        "input_ids": torch.where(seen == 1, torch.randint(5, 90, (2, 7)), 1),
        "attention_mask": seen,
    }


def prompts(entries):
    """17 image tokens before the words."""
    image = torch.full((2, 17), 99)
    return {
        "prompt_ids": torch.cat([image, entries["input_ids"]], 1),
        "prompt_mask": torch.cat([torch.ones_like(image), entries["attention_mask"]], 1),
        "answer_ids": torch.randint(5, 90, (2, 3)),
    }


@pytest.fixture
def files(tmp_path):
    for name, text in (("florence", FLORENCE), ("altclip", ALTCLIP)):
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["florence", "altclip"])
def test_the_file_tells_the_truth(files, name):
    def factory():
        entries = words()
        batch = {"pixel_values": torch.rand(2, 3, 32, 32)}
        batch |= prompts(entries) if name == "florence" else entries
        model = florence() if name == "florence" else altclip()
        return model, batch, files / f"{name}.toml"

    failed = [str(one) for one in testing.check_adapter(factory) if one.failed]
    assert failed == []


def test_one_teaches_the_other(files):
    entries = words()
    batch = {"pixel_values": torch.rand(2, 3, 32, 32), **entries, **prompts(entries)}
    student = altclip()
    distiller = dk.Distiller(
        student, florence(), dk.load_recipe("dide_attention"),
        student_adapter=files / "altclip.toml", teacher_adapter=files / "florence.toml",
    )  # fmt: skip
    assert distiller.check(batch).passed, str(distiller.check(batch))
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    values = []
    for _ in range(5):
        result = distiller(batch)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(result.loss.item())
    assert values[-1] < values[0]
