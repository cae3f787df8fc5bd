"""TOML files that are nearly right, or nothing at all: tables changed in places, and their text."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from typing import Any

from hypothesis import strategies as st

Place = tuple[Any, Any]  # a table or an array, and the key in it

NUMBERS = [
    0,
    1,
    -1,
    2,
    0.0,
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    10**30,
    -(10**19),
]
STRINGS = [
    "", " ", "text", "image", "joint", "logits", "mse", "kl_divergence", "attention.text_to_image",
    "*", "**", "a.b.*", "[", "(", "\\", "..", "/", "\x00", "\u202e", "İ", "ß", "💥", "a" * 2000,
    "fuzz_bomb:go", "fuzz_bomb", "os:abort", "__class__", "module:", "last", "all", "valid",
]  # fmt: skip
OTHERS = [
    True,
    False,
    date(1, 1, 1),
    datetime(9999, 12, 31, tzinfo=UTC),
    time(0),
    [],
    {},
    [[]],
    [{}],
]
VALUES = [*NUMBERS, *STRINGS, *OTHERS]


def toml(tables: dict[str, Any]) -> str:
    """Tables as the text of a file."""
    return "".join(f"{_quoted(key)} = {_value(value)}\n" for key, value in tables.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{_quoted(key)} = {_value(one)}" for key, one in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    return str(value).lower() if isinstance(value, (bool, float)) else str(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _places(value: Any) -> Iterator[Place]:
    """Every key of every table and array, at any depth."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def changed_tables(tables: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A copy with one to four places changed."""
    made = copy.deepcopy(tables)
    for _ in range(chance.randint(1, 4)):
        places = list(_places(made))
        if not places:
            return made
        _change(*chance.choice(places), chance)
    return made


def _change(owner: Any, key: Any, chance: random.Random) -> None:
    value = owner[key]
    kind = chance.choice(["replace", "remove", "rename", "wrap", "deepen", "edit", "repeat"])
    if kind == "remove":
        del owner[key]
    elif kind == "rename" and isinstance(owner, dict):
        owner[_typo(key, chance)] = owner.pop(key)
    elif kind == "wrap":
        owner[key] = [value] if chance.random() < 0.5 else {"text": value}
    elif kind == "deepen":
        for _ in range(chance.choice([3, 50])):
            value = [value]
        owner[key] = value
    elif kind == "edit" and isinstance(value, str):
        owner[key] = _typo(value, chance)
    elif kind == "repeat" and isinstance(value, list):
        owner[key] = value * chance.choice([2, 40])
    else:
        owner[key] = copy.deepcopy(chance.choice(VALUES))


def _typo(text: str, chance: random.Random) -> str:
    at = chance.randint(0, len(text))
    return chance.choice([
        text[:at] + text[at + 1:], text[:at] + chance.choice(["x", ".", "*", ":", "é", " "]) + text[at:],
        text.upper(), text[::-1],
    ])  # fmt: skip


def changed_bytes(given: bytes, chance: random.Random) -> bytes:
    """The bytes with some removed, added, repeated, changed or cut off."""
    data = bytearray(given)
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(data))
        kind = chance.choice(["remove", "add", "cut", "repeat", "bits"])
        if kind == "remove":
            del data[at : at + chance.randint(1, 9)]
        elif kind == "add":
            data[at:at] = chance.choice(
                [b"[", b"]]", b"=", b'"', b"\n", b"\x00", b"\xff", b"#", b"{"]
            )
        elif kind == "cut" and chance.random() < 0.2:
            del data[at:]
        elif kind == "repeat":
            data[at:at] = data[max(0, at - 40) : at] * chance.choice([1, 30])
        elif data:
            data[min(at, len(data) - 1)] ^= 1 << chance.randint(0, 7)
    return bytes(data)


def made_up(keys: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Tables of any shape, whose keys are often those that such a file has."""
    names = st.sampled_from(keys) | st.text(max_size=5)
    leaves = st.sampled_from(VALUES) | st.text(max_size=8) | st.integers() | st.floats()
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
        max_leaves=12,
    )
    return st.dictionaries(names, values, max_size=6)


def files(seeds: list[tuple[str, dict[str, Any]]], keys: list[str]) -> st.SearchStrategy[bytes]:
    """The bytes of a file: right ones changed as tables or as text, and made up ones."""

    def mutant(seed: int) -> bytes:
        chance = random.Random(seed)
        text, tables = chance.choice(seeds)
        if chance.random() < 0.3:
            return changed_bytes(text.encode(), chance)
        return toml(changed_tables(tables, chance)).encode()

    invented = made_up(keys).map(lambda tables: toml(tables).encode("utf-8", "surrogatepass"))
    return st.integers(0, 2**48).map(mutant) | invented
