"""The conformance kit: checks that strangers run on their own losses, adapters and plugins.

Names are imported when they are first used: neither torch nor hypothesis is loaded before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same table for editors and type checkers
    from .adapters import AdapterCase as AdapterCase
    from .adapters import check_adapter as check_adapter
    from .adapters import parametrize_with_adapter_checks as parametrize_with_adapter_checks
    from .aligners import AlignerCase as AlignerCase
    from .aligners import check_aligner as check_aligner
    from .aligners import parametrize_with_aligner_checks as parametrize_with_aligner_checks
    from .conformance import CHECKS as CHECKS
    from .conformance import TAGS as TAGS
    from .conformance import Check as Check
    from .conformance import check_loss as check_loss
    from .conformance import checks_for as checks_for
    from .conformance import parametrize_with_loss_checks as parametrize_with_loss_checks
    from .lifecycle import DistillerCase as DistillerCase
    from .lifecycle import check_distiller as check_distiller
    from .lifecycle import parametrize_with_distiller_checks as parametrize_with_distiller_checks
    from .operations import check_operation as check_operation
    from .plugins import assert_plugin as assert_plugin
    from .plugins import check_plugin as check_plugin
    from .results import CheckResult as CheckResult
    from .strategies import Arguments as Arguments
    from .strategies import Draw as Draw
    from .strategies import arguments as arguments
    from .strategies import attentions as attentions
    from .strategies import hidden_states as hidden_states
    from .strategies import logits as logits
    from .strategies import masks as masks
    from .strategies import probabilities as probabilities
    from .strategies import tensors as tensors
    from .subject import CheckFailedError as CheckFailedError
    from .subject import Loss as Loss
    from .weightings import check_weighting as check_weighting

_HOMES = {
    "AdapterCase": "adapters",
    "AlignerCase": "aligners",
    "Arguments": "strategies",
    "CHECKS": "conformance",
    "Check": "conformance",
    "CheckFailedError": "subject",
    "CheckResult": "results",
    "DistillerCase": "lifecycle",
    "Draw": "strategies",
    "Loss": "subject",
    "TAGS": "conformance",
    "arguments": "strategies",
    "assert_plugin": "plugins",
    "attentions": "strategies",
    "check_adapter": "adapters",
    "check_aligner": "aligners",
    "check_distiller": "lifecycle",
    "check_loss": "conformance",
    "check_operation": "operations",
    "check_plugin": "plugins",
    "check_weighting": "weightings",
    "checks_for": "conformance",
    "hidden_states": "strategies",
    "logits": "strategies",
    "masks": "strategies",
    "parametrize_with_adapter_checks": "adapters",
    "parametrize_with_aligner_checks": "aligners",
    "parametrize_with_distiller_checks": "lifecycle",
    "parametrize_with_loss_checks": "conformance",
    "probabilities": "strategies",
    "tensors": "strategies",
}

__all__ = sorted(_HOMES)


if not TYPE_CHECKING:  # a checker would take any name for one of these

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            try:
                return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
            except ModuleNotFoundError as error:
                if error.name not in ("hypothesis", "pytest"):
                    raise
                raise ModuleNotFoundError(
                    f"distillkit.testing.{name} needs {error.name}: "
                    'pip install "distillkit[testing]"',
                    name=error.name,
                ) from None
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
