"""Every packaged recipe on two tiny models of transformers, and its loss in plain torch."""

from __future__ import annotations

from . import clip, dide, linear
from .trial import Trial

TRIALS: dict[str, Trial] = {**clip.TRIALS, **dide.TRIALS, **linear.TRIALS}
