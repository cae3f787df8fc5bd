"""What is not collected where its library is not installed."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("accelerate") else ["train_by_accelerate.py"]
