"""accelerate: prepare the distiller, as any model; it saves and loads the student alone.

accelerate launch examples/loops/accelerate_loop.py
"""

from __future__ import annotations

import tempfile

import torch
import transformers as hf
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

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
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    distiller = dk.Distiller(student, teacher.to(accelerator.device), "dide_attention")
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-2)
    loader = torch.utils.data.DataLoader(make_examples(32), batch_size=4, shuffle=True)
    distiller, optimizer, loader = accelerator.prepare(distiller, optimizer, loader)
    (folder,) = broadcast_object_list([tempfile.mkdtemp()])  # the first process names it
    run_log = dk.RunLog(f"{folder}/run", accelerator.unwrap_model(distiller))
    meter, losses, epochs = dk.Meter(), [], 10
    for epoch in range(epochs):
        for batch in loader:
            with accelerator.accumulate(distiller):
                result = distiller(batch, progress=epoch / epochs)
                accelerator.backward(result.loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(distiller.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            meter.add(result)
        means = meter.means()
        run_log.write(means, step=(epoch + 1) * len(loader) // 2)
        losses.append(means["loss"])
    run_log.close()
    accelerator.print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    accelerator.save_state(folder)
    accelerator.wait_for_everyone()
    accelerator.load_state(folder)


if __name__ == "__main__":
    main()
