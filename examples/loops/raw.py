"""A loop of one's own: accumulation of unequal batches, bf16, clipping, a checkpoint.

python examples/loops/raw.py
"""

from __future__ import annotations

import tempfile

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
    distiller = dk.Distiller(student, teacher, "dide_attention")
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-2)
    loader = torch.utils.data.DataLoader(make_examples(31), batch_size=4)
    batches, steps = list(loader), 40
    run_log = dk.RunLog(tempfile.mkdtemp(), distiller, batch=batches[0])
    meter, losses = dk.Meter(), []
    for step in range(steps):
        parts = batches[:4] if step % 2 == 0 else batches[4:]  # the last batch has 3 examples
        normalizer = distiller.normalizer(parts)
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16):
                result = distiller(part, progress=step / steps, normalizer=normalizer)
            result.loss.backward()
            meter.add(result, parts=len(parts), summed=True)
        torch.nn.utils.clip_grad_norm_(distiller.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        means = meter.means()
        run_log.write(means, step=step + 1)
        losses.append(means["loss"])
    run_log.close()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    again = dk.Distiller(*make_pair(), "dide_attention")
    again.load_state_dict(distiller.state_dict())  # student and aligners, no teacher


if __name__ == "__main__":
    main()
