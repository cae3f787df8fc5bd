"""DiDE on real classes of transformers: the example learns, and looks where its teacher looks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import distillkit as dk

EXAMPLE = Path(__file__).parents[2] / "examples" / "dide_transformers.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("dide_transformers", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loss_falls_and_attention_aligns(example, capsys):
    results = example.run(teacher_steps=90, steps=90, size=32)
    printed = capsys.readouterr().out
    assert "ready to train" in printed
    assert "attention_kl/attention.image_to_text" in printed
    for name, before in results.before.items():
        assert results.after[name] < 0.8 * before, name
    first, last = (sum(part) / 10 for part in (results.losses[:10], results.losses[-10:]))
    assert last < 0.7 * first


def test_a_part_of_ones_own_model_is_adapted(example):
    """The same towers, inside a model that is no class of transformers."""

    class Student(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.clip = example.make_student()
            self.head = torch.nn.Linear(2 * 64, example.ANSWERS)

        def forward(self, words, seen, pixels):
            text = self.clip.text_model(input_ids=words, attention_mask=seen)
            image = self.clip.vision_model(pixel_values=pixels)
            both = torch.cat([text.last_hidden_state[:, 0], image.last_hidden_state[:, 0]], -1)
            return self.head(both)

    student = Student()
    drawn = example.draw(4, torch.Generator().manual_seed(0))
    batch = {
        "student_words": drawn["input_ids"], "student_seen": drawn["attention_mask"],
        "pixel_values": drawn["pixel_values"],
        "teacher_input_ids": drawn["input_ids"].clone(),
        "teacher_attention_mask": drawn["attention_mask"].clone(),
    }  # fmt: skip
    adapter = dk.adapt(
        student, "vision_text_dual_encoder", at="clip", logits="head",
        inputs={"words": "words", "seen": "seen", "pixels": "pixel_values",
                "input_ids": "words", "attention_mask": "seen", "pixel_values": "pixel_values"},
    )  # fmt: skip
    distiller = dk.Distiller(student, example.make_teacher(), "dide", student_adapter=adapter)
    result = distiller(batch)
    result.loss.backward()
    assert result.student["logits"].shape == (4, example.ANSWERS)
    assert student.clip.text_model.encoder.layer[0].attention.self.query.weight.grad.any()
    assert student.clip.vision_model.layers[0].attention.q_proj.weight.grad.any()
