"""A page of some size in a real browser: every number, every picker, by mouse and by keyboard."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch

import distillkit as dk
from distillkit._view import coding, contexts
from tests.support import browser
from tests.support.shown import TO_IMAGE, TO_TEXT

pytestmark = [
    pytest.mark.skipif(not (browser.CHROMIUM and browser.DRIVER), reason=browser.MISSING),
    pytest.mark.xdist_group("browser"),
]
EXAMPLES, LAYERS, HEADS, LENGTH, GRID = 2, 2, 4, 14, (5, 6)
HOSTILE = '"><img src=x onerror="window.hit=1">'
NAMES = [TO_IMAGE, TO_TEXT, "attention.text", "attention.image"]
STEPS = [f"step {HOSTILE}", "step 500", "step 900"]


def side(seed):
    """Sharp and even heads, of four relations; the second example is padded."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(LENGTH) < torch.tensor([[LENGTH], [9]])
    text = dk.TokenAxis("text", valid, special=(0,))
    image = dk.TokenAxis("image", special=(0,), grid=GRID)
    ends = dict(
        zip(NAMES, [(text, image), (image, text), (text, text), (image, image)], strict=True)
    )
    counts = {"text": LENGTH, "image": 1 + GRID[0] * GRID[1]}
    sharpness = torch.tensor([0.3, 1.0, 3.0, 8.0]).view(1, HEADS, 1, 1)
    values = {}
    for name, (rows, keys) in ends.items():
        shape = (EXAMPLES, HEADS, counts[rows.modality], counts[keys.modality])
        values[name] = [
            dk.Attention.from_scores(
                sharpness * torch.randn(shape, generator=generator),
                rows=rows.valid,
                mask=None if keys.valid is None else keys.valid[:, None, None],
            )
            for _ in range(LAYERS)
        ]
    return dk.Signals(values, axes=ends)


@pytest.fixture(scope="module")
def sides():
    return {name: side(i) for i, name in enumerate(STEPS)}, side(9)


@pytest.fixture(scope="module")
def page(sides):
    words = [[f"{i} {HOSTILE}" for i in range(count)] for count in (LENGTH, 9)]
    with (
        mock.patch.object(coding, "LEVELS", (12,)),
        mock.patch.object(contexts, "_CODES_PER_ENTRY", 1),
    ):
        return dk.view(*sides, words=words, images=torch.rand(2, 3, 40, 48), signals="all")


@pytest.fixture(scope="module")
def opened(page, tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("profile")) as window:
        window.open(page.save(tmp_path_factory.mktemp("page") / "view.html"))
        yield window
        assert window.run("return window.hit === undefined")
        assert window.run("return document.querySelectorAll('img[src=x]').length") == 0
        assert window.problems() == []


def ready(window, *expected):
    window.wait(
        "return document.documentElement.dataset.ready === arguments[0]",
        "/".join(map(str, expected)),
    )


def test_every_number_of_every_map_is_the_tensors(opened, page, sides):
    steps, teacher = sides
    assert page.relative < 0.07
    for (number, name), layer, step in itertools.product(
        enumerate(NAMES), range(LAYERS), range(len(STEPS))
    ):
        for control, value in (("signal", number), ("layer", layer), ("checkpoint", step)):
            opened.choose(f"#{control}", value)
        script = """
            const q = size(signal().rows), k = size(signal().keys), all = (n) => [...Array(n).keys()];
            const maps = (one, h) => all(facts.examples).map((b) => all(q).map((row) => one.counts(b, h, row)
                ? all(k).map((key) => one.at(b, h, row, key)) : all(k).map(() => 0)));
            return arguments[0].map((h) => ["student", "teacher"].map((one) => maps(drawn[one], h)))"""
        heads = [*range(HEADS), -1]
        for head, pair in zip(heads, opened.run(script, heads), strict=True):
            for found, signals in zip(pair, (steps[STEPS[step]], teacher), strict=True):
                exact = signals[name][layer].probabilities()
                exact = exact.mean(1) if head < 0 else exact[:, head]
                off = (torch.tensor(found) - exact).abs()
                assert off.max() <= page.tolerance + 1e-6
                if head >= 0:
                    largest = exact.amax(-1, keepdim=True)
                    assert (off <= page.relative * largest + 1e-6).all()


def test_every_picker_works_by_mouse(opened):
    opened.choose("#checkpoint", 2)
    for picker in ("signal", "layer", "head", "example"):
        first = 'option[value="-1"]' if picker == "head" else 'option[value="0"]'
        opened.click(f"#{picker} {first}")
    ready(opened, 0, 0, 0, -1, -1, 2)
    opened.click('#signal option[value="1"]')
    ready(opened, 0, 1, 0, -1, -1, 2)
    opened.click('#layer option[value="1"]')
    opened.click('#head option[value="3"]')
    ready(opened, 0, 1, 1, 3, 3, 2)
    opened.hover("#checkpoint", 0.02, click=True)
    ready(opened, 0, 1, 1, 3, 3, 0)
    assert opened.text("#checkpoint-name") == STEPS[0]
    opened.click('#example option[value="1"]')
    ready(opened, 1, 1, 1, 3, 3, 0)


def test_every_picker_works_by_keyboard(opened):
    opened.choose("#checkpoint", 2)
    for picker, value in (("example", 0), ("signal", 0), ("layer", 0), ("head", -1)):
        opened.choose(f"#{picker}", value)
    for picker in ("signal", "layer", "head"):
        opened.run("document.getElementById(arguments[0]).focus()", picker)
        opened.press(browser.DOWN)
    ready(opened, 0, 1, 1, 0, 0, 2)
    opened.press(browser.TAB)  # the slider follows the heads
    assert opened.run("return document.activeElement.id") == "checkpoint"
    opened.press(browser.LEFT)
    ready(opened, 0, 1, 1, 0, 0, 1)
    assert opened.run("return document.activeElement.getAttribute('aria-valuetext')") == STEPS[1]
    opened.press(browser.HOME)
    ready(opened, 0, 1, 1, 0, 0, 0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(opened, theme):
    opened.choose("#signal", 0)
    opened.prefer(theme)
    contrasts = opened.run("""
        const lit = (text) => {
          const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((x) => { const c = x / 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const paper = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c) && c !== 'transparent') return c; } };
        return ['h1', 'h2', 'label', '#tokens thead th', '#tokens tbody tr.now button', 'figure[data-side=teacher] figcaption', 'figure[data-side=student] figcaption', '.state', '.legend', '#readout', '#notes'].map((one) => {
          const e = document.querySelector(one), [a, b] = [lit(getComputedStyle(e).color), lit(paper(e))];
          return [one, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
        })""")
    opened.prefer("light")
    assert [one for one in contrasts if one[1] < 4.5] == []  # WCAG 2.2, 1.4.3


def test_a_phone_shows_words_under_panels(opened):
    opened.choose("#example", 0)
    opened.choose("#signal", 0)
    opened.resize(390, 844)
    try:
        wide = "return [document.documentElement.scrollWidth, innerWidth]"
        assert opened.run(wide) == [390, 390]
        opened.hover('#tokens tr[data-index="13"] button', click=True)
        script = "return [...document.querySelectorAll('figure')].filter((f) => f.dataset.side !== 'image').map((f) => f.getBoundingClientRect()).map((r) => r.left >= 0 && r.right <= innerWidth && r.top >= 0 && r.bottom <= innerHeight)"
        assert opened.run(script) == [True] * 3  # they stay beside the last word
        assert opened.text("#readout").startswith(f"“13 {HOSTILE}”")
    finally:
        opened.resize(0, 0)
