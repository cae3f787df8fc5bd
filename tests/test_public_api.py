"""The public API is the one that is written down: every change of it is seen in a diff."""

from __future__ import annotations

import inspect
import re

import pytest

import distillkit as dk
from tools import public_api

HOW = "the public API has changed; if that is meant, run python -m tools.public_api --write"


def test_the_public_api_is_the_one_in_the_inventory():
    assert public_api.inventory() == public_api.INVENTORY.read_text(encoding="utf-8"), HOW


def test_every_public_name_is_in_the_inventory():
    text = public_api.INVENTORY.read_text(encoding="utf-8")
    for module in (dk, dk.losses, dk.testing):
        for name in module.__all__:
            assert re.search(
                rf"^((class|def) {name}\b|{name}: |module .*\b{name}$)", text, re.MULTILINE
            ), name


@pytest.mark.parametrize(
    ("owner", "name", "added", "line"),
    [
        (dk.Signals, "added", lambda self, x, *, y=2: None, "    def added(self, x, *, y = 2)"),
        (dk.Signals, "added", property(lambda self: 1), "    property added: "),
        (dk.Signals, "added", classmethod(lambda cls, /: 1), "    classmethod added(cls, /)"),
        (dk.LossSpec, "kind", "lost", "    kind: ClassVar[str] = 'lost'"),
        (dk.losses, "mse", lambda student, teacher=None: 0, "def mse(student, teacher = None)"),
        (dk.testing, "TAGS", ("one", "two"), "    'two'"),
    ],
)
def test_a_change_is_seen(owner, name, added, line, monkeypatch):
    assert line not in public_api.inventory().splitlines()
    monkeypatch.setattr(owner, name, added, raising=False)
    lines = public_api.inventory().splitlines()
    assert [one for one in lines if one.startswith(line)]


def test_a_signature_is_written_as_python_writes_it():
    def short(a, /, b=int, *, c: float = 0.5, d="x") -> int: ...

    def long(
        number: int, /, text: str = "x", *rest: float, flag: bool, table: dict[str, int], **more
    ): ...

    assert public_api.call("def short", inspect.signature(short)) == [
        "def short(a, /, b = int, *, c: float = 0.5, d = 'x') -> int"
    ]
    assert public_api.call("    def a_long_name", inspect.signature(long)) == [
        "    def a_long_name(", "    number: int,", "    /,", "    text: str = 'x',",
        "    *rest: float,", "    flag: bool,", "    table: dict[str, int],", "    **more,", ")",
    ]  # fmt: skip
