"""The conformance kit: checks that strangers run on their own losses, adapters and plugins."""

from .results import CheckResult as CheckResult

__all__ = sorted(name for name in globals() if not name.startswith("_"))
