"""How large the viewer's page is, and how long it takes to write and to open.

    python benchmarks/view.py

16 examples, 12 layers and 12 heads on each side, of random queries and keys: maps that are nearly
even cost most. Images are soft noise, about as large as photographs. Opening needs Chromium.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

import distillkit as dk

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.browser import CHROMIUM, DRIVER, browser

EXAMPLES, LAYERS, HEADS, WIDTH = 16, 12, 12, 64


def signals(words, side, sharpness):
    grid = (side, side)
    text = dk.TokenAxis("text", torch.arange(words) < torch.randint(6, words, (EXAMPLES, 1)))
    image = dk.TokenAxis("image", special=(0,), grid=grid)
    layers = [
        dk.Attention(
            sharpness * torch.randn(EXAMPLES, HEADS, words, WIDTH),
            torch.randn(EXAMPLES, HEADS, side * side + 1, WIDTH),
            rows=text.valid,
        )
        for _ in range(LAYERS)
    ]
    name = "attention.text_to_image"
    return dk.Signals({name: layers}, axes={name: (text, image)})


def main():
    torch.manual_seed(0)
    print(
        "| words x patches | maps | page | exact to | written in | opened in |\n|---|---|---|---|---|---|"
    )
    for words, side in ((16, 7), (40, 12)):
        for sharpness, name in ((0.5, "even"), (3.0, "sharp")):
            sides = [signals(words, side, sharpness) for _ in range(2)]
            sides[1] = dk.Signals({**sides[1]}, axes={n: sides[0].axes(n) for n in sides[0]})
            images = torch.nn.functional.interpolate(
                torch.rand(EXAMPLES, 3, 56, 56), 224, mode="bilinear"
            )
            tokens = [[f"w{i}" for i in range(words)]] * EXAMPLES
            start = time.perf_counter()
            page = dk.view(*sides, words=tokens, images=images)
            wrote, opened = time.perf_counter() - start, "no browser"
            with tempfile.TemporaryDirectory() as folder:
                if CHROMIUM and DRIVER:
                    with browser(Path(folder) / "profile") as window:
                        file = page.save(Path(folder) / "view.html")
                        opened = f"{window.open(file):.2f} s"
            size = len(page.html.encode()) / 1e6
            print(
                f"| {words} x {side * side} | {name} | {size:.2f} MB | {page.tolerance:.2g} | "
                f"{wrote:.1f} s | {opened} |"
            )


if __name__ == "__main__":
    main()
