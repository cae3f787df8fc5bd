"""PEFT: a student with LoRA adapters, trained by its attention; a teacher in half precision.

python examples/loops/peft_student.py
"""

from __future__ import annotations

import tempfile

import peft
import torch
import transformers as hf

import distillkit as dk

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TEXT = {**SIZES, "vocab_size": 100, "max_position_embeddings": 16}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}


def make_pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two towers that learn, and a ViLT whose attention they learn."""
    torch.manual_seed(0)
    towers = hf.ViTConfig(**IMAGE), hf.BertConfig(**TEXT)
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(*towers, projection_dim=16)
    teacher = hf.ViltModel(hf.ViltConfig(**{**TEXT, **IMAGE, "initializer_range": 0.3}))
    return hf.VisionTextDualEncoderModel(config), teacher


def make_examples(count: int) -> list[dict[str, torch.Tensor]]:
    """Words and pixels drawn at random, always the same."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(5, 100, (7,), generator=generator),
            "attention_mask": torch.ones(7, dtype=torch.long),
            "pixel_values": torch.rand(3, 16, 16, generator=generator),
        }
        for _ in range(count)
    ]


def main() -> None:
    student, teacher = make_pair()
    config = peft.LoraConfig(r=4, target_modules=["query", "key", "q_proj", "k_proj"])
    student = peft.get_peft_model(student, config)
    distiller = dk.Distiller(student, teacher.bfloat16(), "dide_attention")
    learned = [p for p in distiller.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=5e-2)
    batch = torch.utils.data.default_collate(make_examples(16))
    losses = []
    for step in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            result = distiller(batch, progress=step / 40)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result.loss.item())
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        student.save_pretrained(folder)  # the LoRA weights alone


if __name__ == "__main__":
    main()
