"""How large the viewer's page is, how exact, and how long it takes to write and to open.

    python benchmarks/view.py
    python benchmarks/view.py --only 40x144/trained

16 examples, 12 layers and 12 heads on each side. Maps are ``trained``: like those of trained models,
smooth over the image and alike from word to word, heads from even to sharp, and a student that is
like its teacher; or of random queries and keys, which nothing foretells: ``sharp`` and ``even``.
Sentences have 6 to all of the words; of ``full`` ones none is padded. Opening needs Chromium; its
first time is by the clock, its second what the page's own thread computes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import distillkit as dk

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support import shown
from tests.support.browser import CHROMIUM, DRIVER, browser

EXAMPLES, LAYERS, HEADS, WIDTH = 16, 12, 12, 64
NAME = "attention.text_to_image"
Sides = tuple[Tensor, Tensor]


def field(rows: int, side: int, coarse: int) -> Tensor:
    """``(b, h, rows, side ** 2)`` of unit variance, smooth over the image."""
    x = torch.randn(EXAMPLES * HEADS * rows, 1, coarse, coarse)
    x = F.interpolate(x, (side, side), mode="bicubic", align_corners=False)
    return (x / x.std()).view(EXAMPLES, HEADS, rows, side * side)


def scores_like_trained(words: int, side: int) -> Tensor:
    """What all words of a head look at, what each looks at, and noise; before them a class token."""
    noise = torch.randn(EXAMPLES, HEADS, words, side * side)
    found = 0.6 * field(1, side, 6) + 0.7 * field(words, side, 4) + 0.4 * noise
    return torch.cat([1.5 + 0.7 * torch.randn(EXAMPLES, HEADS, words, 1), found], -1)


def trained(words: int, side: int) -> Sides:
    theirs, own = (scores_like_trained(words, side) for _ in range(2))
    sharpness = torch.exp(torch.empty(1, HEADS, 1, 1).uniform_(-0.7, 1.6))
    return sharpness * (0.8 * theirs + 0.6 * own), sharpness * theirs


def random(sharpness: float) -> Callable[[int, int], Sides]:
    def scores(words: int, side: int) -> Tensor:
        keys = torch.randn(EXAMPLES, HEADS, WIDTH, side * side + 1)
        return sharpness * torch.randn(EXAMPLES, HEADS, words, WIDTH) @ keys / WIDTH**0.5

    return lambda words, side: (scores(words, side), scores(words, side))


MAPS = {"trained": trained, "sharp": random(3.0), "even": random(0.5)}
CASES = [
    (words, side, name, full)
    for words, side in ((16, 7), (40, 12))
    for name in MAPS
    for full in (False, True)
]


def signals(words: int, side: int, name: str, *, full: bool) -> tuple[dk.Signals, dk.Signals]:
    """The student's and the teacher's."""
    lengths = torch.randint(6, words + 1, (EXAMPLES, 1))
    valid = torch.arange(words) < (torch.full_like(lengths, words) if full else lengths)
    axes = {NAME: (dk.TokenAxis("text", valid, special=(0,)), image_axis(side))}
    pairs = [MAPS[name](words, side) for _ in range(LAYERS)]
    of_side = [
        [dk.Attention.from_scores(one, rows=valid) for one in x] for x in zip(*pairs, strict=True)
    ]
    student, teacher = (dk.Signals({NAME: one}, axes=axes) for one in of_side)
    return student, teacher


def image_axis(side: int) -> dk.TokenAxis:
    return dk.TokenAxis("image", special=(0,), grid=(side, side))


def measured(words: int, side: int, name: str, *, full: bool) -> list[str]:
    """Size, exactness and times of one page."""
    torch.manual_seed(0)
    sides = signals(words, side, name, full=full)
    images = F.interpolate(torch.rand(EXAMPLES, 3, 56, 56), 224, mode="bilinear")
    tokens = [[f"w{i}" for i in range(words)]] * EXAMPLES
    start = time.process_time()
    page = dk.view(*sides, words=tokens, images=images)
    wrote = time.process_time() - start
    opened = ["no browser"] * 2
    if CHROMIUM and DRIVER:
        with tempfile.TemporaryDirectory() as folder, browser(Path(folder) / "profile") as window:
            file = page.save(Path(folder) / "view.html")
            best = map(min, zip(*(window.opening(file) for _ in range(3)), strict=True))
            opened = [f"{one:.2f} s" for one in best]
    levels = shown.facts_of(page.html)["levels"]
    size = f"{len(page.html.encode()) / 1e6:.2f} MB"
    return [size, str(levels), f"{page.tolerance:.2g}", f"{page.relative:.1%}", f"{wrote:.0f} s", *opened]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name begins so, as 40x144/trained")
    only = parser.parse_args().only
    titles = ["words x patches", "maps", "page", "steps", "exact to", "of the row's largest",
              "written in", "opened in", "of its own time"]  # fmt: skip
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for words, side, name, full in CASES:
        tokens, kind = f"{words}x{side * side}", f"{name}, full" if full else name
        if f"{tokens}/{kind}".startswith(only):
            found = measured(words, side, name, full=full)
            print(f"| {tokens} | {kind} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
