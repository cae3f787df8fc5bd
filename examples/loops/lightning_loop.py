"""Lightning: the module is given, and a checkpoint is the student alone.

python examples/loops/lightning_loop.py
"""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import lightning
import torch
import transformers as hf
from distillkit_lightning import DistillationModule

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


class Losses(lightning.Callback):
    """Keeps what is logged of each epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.seen.append(trainer.callback_metrics["train/loss"].item())


def main() -> None:
    student, teacher = make_pair()
    adam = functools.partial(torch.optim.AdamW, lr=1e-2)
    losses = Losses()
    with tempfile.TemporaryDirectory() as folder:
        module = DistillationModule(
            student, teacher, "dide_attention", optimizer=adam, run_log=f"{folder}/run"
        )
        trainer = lightning.Trainer(
            max_epochs=10, accelerator="cpu", devices=1, callbacks=[losses], logger=False,
            log_every_n_steps=4, accumulate_grad_batches=2, gradient_clip_val=1.0,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(make_examples(32), batch_size=4, shuffle=True)
        trainer.fit(module, loader)
        trainer.save_checkpoint(f"{folder}/student.ckpt")
        state = torch.load(f"{folder}/student.ckpt", weights_only=False)["state_dict"]
    module.distiller.load_state_dict(state)
    print(f"loss {losses.seen[0]:.4f} -> {losses.seen[-1]:.4f}")


if __name__ == "__main__":
    main()
