"""Tests of what needs more than the lowest torch say which version they wait for."""

from __future__ import annotations

import pytest

from distillkit import _needs


def needs(need: _needs.Need) -> pytest.MarkDecorator:
    """Skip where torch is too old, and say for what."""
    return pytest.mark.skipif(not need.is_met(), reason=need.unmet().removeprefix("; "))


whole_graphs_of_attentions = needs(_needs.WHOLE_GRAPHS_OF_ATTENTIONS)
capture_in_compiled_code = needs(_needs.CAPTURE_IN_COMPILED_CODE)
