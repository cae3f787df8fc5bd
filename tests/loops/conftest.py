"""What is not collected where its libraries are not installed."""

from __future__ import annotations

import importlib.util

NEEDED = {
    "lightning_trainings.py": ("lightning",),
    "real_adapters.py": ("peft",),
    "train_by_accelerate.py": ("accelerate", "peft"),
}
collect_ignore = [
    file
    for file, libraries in NEEDED.items()
    if not all(importlib.util.find_spec(library) for library in libraries)
]
