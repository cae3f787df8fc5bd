"""transformers' Trainer: the student is trained, evaluated and saved as without a teacher.

python examples/loops/trainer.py
"""

from __future__ import annotations

import tempfile

import torch
import transformers as hf
from distillkit_transformers import DistillationTrainer

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
    with tempfile.TemporaryDirectory() as folder:
        args = hf.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            max_steps=40, learning_rate=1e-2, logging_steps=1, report_to=[], use_cpu=True,
            disable_tqdm=True,
        )  # fmt: skip
        trainer = DistillationTrainer(
            student,
            teacher,
            "dide_attention",
            args=args,
            train_dataset=make_examples(32),
            run_log=f"{folder}/run",
        )
        trainer.remove_callback(hf.PrinterCallback)
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
