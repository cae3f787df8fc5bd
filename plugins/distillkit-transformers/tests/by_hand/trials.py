"""Every packaged recipe on two tiny models of transformers, and its loss in plain torch."""

from __future__ import annotations

from . import clip, decoders, dide, fusion, linear, vilt
from .trial import Trial

TRIALS: dict[str, Trial] = {
    **clip.TRIALS,
    **decoders.TRIALS,
    **dide.TRIALS,
    **fusion.TRIALS,
    **linear.TRIALS,
    **vilt.TRIALS,
}
