"""Small models for the tests of this plugin, and what is skipped without lightning."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning")
