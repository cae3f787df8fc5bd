"""Five steps of two accumulated batches on two gloo ranks; lightning starts the second one."""

from __future__ import annotations

import os
import sys
from itertools import product
from pathlib import Path

import lightning
import torch

from tests.loops.lightning_trainings import (
    Recording,
    module_of,
    trainer_of,
    weights,
    without_dropout,
)
from tests.support.lightning_pairs import examples

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    data = examples(40)
    # a joined batch of 8 examples is two batches of 2 on each of two ranks
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    mine = [data[8 * step + 4 * part + 2 * rank + i] for step, part, i in product(range(5), (0, 1), (0, 1))]  # fmt: skip
    loader = torch.utils.data.DataLoader(mine, batch_size=2)
    module, logger = without_dropout(module_of()), Recording()
    trainer = trainer_of(
        folder, devices=2, strategy="ddp", accumulate_grad_batches=2, log_every_n_steps=1,
        gradient_clip_val=0.1, logger=logger, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    if trainer.is_global_zero:
        rows = [row for _, row in logger.rows if "train/loss" in row]
        torch.save({"weights": weights(module), "rows": rows}, folder / "two.pt")
    assert isinstance(trainer.strategy, lightning.pytorch.strategies.DDPStrategy)
