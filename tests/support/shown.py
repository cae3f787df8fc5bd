"""What the viewer's tests show: small signals of known numbers, and a page's numbers read back."""

from __future__ import annotations

import html.parser
import json

import torch

import distillkit as dk
from tests.support import decoding

WORDS = [["[CLS]", "a", "red", "three"], ["[CLS]", "two", "[padding]", "[padding]"]]
TO_IMAGE, TO_TEXT = "attention.text_to_image", "attention.image_to_text"


def axes():
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    text = dk.TokenAxis("text", valid, special=(0,))
    return text, dk.TokenAxis("image", special=(0,), grid=(2, 3))


def signals(seed=0, *, depth=2, heads=2, width=5, both=True):
    """Two examples of four words and a class token before 2 x 3 patches."""
    generator = torch.Generator().manual_seed(seed)
    text, image = axes()

    def layers(rows, keys, valid):
        return [
            dk.Attention(
                2 * torch.randn(2, heads, rows, width, generator=generator),
                torch.randn(2, heads, keys, width, generator=generator),
                rows=valid if rows == 4 else None,
                mask=None if rows == 4 else valid[:, None, None],
            )
            for _ in range(depth)
        ]

    made = {TO_IMAGE: layers(4, 7, text.valid), TO_TEXT: layers(7, 4, text.valid)}
    known = {TO_IMAGE: (text, image), TO_TEXT: (image, text)}
    names = [TO_IMAGE, TO_TEXT] if both else [TO_IMAGE]
    return dk.Signals({n: made[n] for n in names}, axes={n: known[n] for n in names})


class _Elements(html.parser.HTMLParser):
    """The script elements of a page, as a browser parses them, and every other tag."""

    def __init__(self):
        super().__init__()
        self.scripts, self.tags, self._inside = [], [], None

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs) if tag == "script" else None

    def handle_data(self, data):
        if self._inside is not None:
            self.scripts.append((self._inside, data))
            self._inside = None


def elements(page):
    found = _Elements()
    found.feed(page)
    return found


def facts_of(page):
    scripts = elements(page).scripts
    (text,) = [data for facts, data in scripts if facts.get("id") == "facts"]
    return json.loads(text)


def maps_of(page, signal, layer, side, checkpoint=0):
    """``(b, h, q, k)`` that a page holds, NaN where it says so, and the rows that count."""
    entry = facts_of(page)["signals"][signal]["layers"][layer]
    index = entry["teacher"] if side == "teacher" else entry["students"][checkpoint]
    return decoding.read(facts_of(page), _blocks(page), index)


def _blocks(page):
    return {
        int(facts["id"].removeprefix("layer-")): data
        for facts, data in elements(page).scripts
        if facts.get("id", "").startswith("layer-")
    }
