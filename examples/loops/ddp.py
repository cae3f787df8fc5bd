"""DDP by torchrun: wrap the distiller, not the student.

torchrun --nproc-per-node 2 examples/loops/ddp.py
"""

from __future__ import annotations

import gc
from contextlib import nullcontext

import torch
import torch.distributed as dist
import transformers as hf
from torch.nn.parallel import DistributedDataParallel

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
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    student, teacher = make_pair()
    distiller = dk.Distiller(student, teacher, "dide_attention")
    model = DistributedDataParallel(distiller)  # every parameter gets a gradient, if only zeros
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = torch.utils.data.DataLoader(make_examples(32)[rank::ranks], batch_size=4)
    batches, steps = list(loader), 20
    meter, losses = dk.Meter(), []
    for step in range(steps):
        parts = [batches[(2 * step + i) % len(batches)] for i in range(2)]
        normalizer = distiller.normalizer(parts)  # over all ranks: unequal batches add up, too
        for i, part in enumerate(parts):
            with model.no_sync() if i == 0 else nullcontext():
                result = model(part, progress=step / steps, normalizer=normalizer)
                result.loss.backward()
            meter.add(result, parts=len(parts), summed=True)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(meter.means()["loss"])
    if rank == 0:
        print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}", flush=True)
    # DDP goes before its process group: left to the end of the process, it may abort it
    del model, distiller, optimizer, result
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
