"""One process of a training: ``torchrun rank_of_trainer.py FOLDER EXAMPLES_PER_PROCESS PARTS``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import transformers as hf

from tests.support import small_trainings as small


def main(folder: Path, size: int, parts: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student, teacher, data = small.towers(), small.towers(12), small.pairs(24)
    saves = []
    save = hf.PreTrainedModel.save_pretrained

    def noted(self, *args, **kwargs):
        saves.append(1)
        return save(self, *args, **kwargs)

    hf.PreTrainedModel.save_pretrained = noted
    trainer = small.trainer_of(
        folder, student, teacher, small.PROJECTED, data, **{**small.SGD, "max_grad_norm": 0.5},
        max_steps=3, per_device_train_batch_size=size, gradient_accumulation_steps=parts,
        save_strategy="steps", save_steps=3, eval_dataset=data[:8], evaluate_distillation=True,
        seed=7 + int(os.environ["RANK"]),  # aligners start alike all the same
    )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    rank = trainer.args.process_index
    torch.save(
        {
            "learned": small.learned(trainer),
            "logs": [log for log in trainer.state.log_history if "loss" in log],
            "metrics": metrics,
            "saves": len(saves),
            "world": trainer.args.world_size,
        },
        folder / f"rank-{rank}.pt",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
