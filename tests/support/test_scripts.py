"""Scripts of an example are imported once, and their names are nobody else's."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from tests.support.scripts import load_scripts


def test_scripts_share_their_modules_and_leave_no_global_name():
    dide = load_scripts("dide")
    assert load_scripts("dide") is dide
    assert dide.training.data is dide.data is sys.modules["dide.data"]
    assert not {"data", "models", "results"} & set(sys.modules)
    assert importlib.util.find_spec("data") is None


def test_a_module_of_the_same_name_stays(monkeypatch):
    theirs = ModuleType("data")
    monkeypatch.setitem(sys.modules, "data", theirs)
    again = load_scripts.__wrapped__("dide")
    assert sys.modules["data"] is theirs
    assert again.models is not theirs
