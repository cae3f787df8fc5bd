"""How the processes of these tests end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch


def save_and_leave(result: Any, folder: str, rank: int, processes: int = 2) -> None:
    """Save a result, wait for everybody's, and exit at once.

    The regular way out joins threads of the gloo backend, and on a busy machine that aborts now
    and then although all work is done.
    """
    unfinished = Path(folder) / f"{rank}.part"
    torch.save(result, unfinished)
    unfinished.rename(unfinished.with_suffix(".pt"))
    deadline = time.monotonic() + 120
    while len(list(Path(folder).glob("*.pt"))) < processes:
        if time.monotonic() > deadline:
            raise TimeoutError("another process saved nothing")
        time.sleep(0.01)
    os._exit(0)
