"""Two processes log one training: the first alone has files, and readings are taken by both."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import distillkit as dk
from tests.support import tiny


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    made = dk.Distiller(
        tiny.Dual(), tiny.Fusion(), "dide_attention", ignore=["labels"],
        student_adapter=dk.DeclarativeAdapter(**tiny.DUAL_TABLES),
        teacher_adapter=dk.DeclarativeAdapter(**tiny.FUSION_TABLES),
    )  # fmt: skip
    meter, losses, readings = dk.Meter(), [], []
    log = dk.RunLog(folder / "run", made, watch=dk.Watch(batch=tiny.batch(4, seed=4), every=1))
    for step in (1, 2):
        result = made(tiny.batch(3, seed=10 * step + rank))
        meter.add(result)
        losses.append(result.loss.item())
        readings.append(dict(log.write(meter.means(), step=step)))
    files = log._files.are_open
    log.close()
    torch.save({"files": files, "losses": losses, "readings": readings}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
