"""The conformance kit: checks that strangers run on their own losses, adapters and plugins."""

from .adapters import AdapterCase as AdapterCase
from .adapters import check_adapter as check_adapter
from .adapters import parametrize_with_adapter_checks as parametrize_with_adapter_checks
from .operations import check_operation as check_operation
from .plugins import assert_plugin as assert_plugin
from .plugins import check_plugin as check_plugin
from .results import CheckResult as CheckResult

__all__ = sorted(name for name in globals() if not name.startswith("_"))
