"""The viewer's page in a real browser: what it shows is what the tensors hold."""

from __future__ import annotations

import re

import pytest
import torch

import distillkit as dk
from distillkit import losses
from tests.support import browser, shown
from tests.support.shown import TO_IMAGE, TO_TEXT, WORDS

pytestmark = [
    pytest.mark.skipif(not (browser.CHROMIUM and browser.DRIVER), reason=browser.MISSING),
    pytest.mark.xdist_group("browser"),
]
CELLS = [(x, y) for y in (0.25, 0.75) for x in (1 / 6, 0.5, 5 / 6)]  # middles of 2 x 3 patches
SHOWN = 6e-4  # three decimals


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def steps():
    return {"step 0": shown.signals(0), "step 9": shown.signals(5)}


@pytest.fixture(scope="module")
def teacher():
    return shown.signals(1)


@pytest.fixture(scope="module")
def page(steps, teacher):
    return dk.view(steps, teacher, words=WORDS, images=torch.rand(2, 3, 16, 24))


@pytest.fixture
def opened(window, page, tmp_path):
    window.prefer("light")
    window.open(page.save(tmp_path / "view.html"))
    window.away()
    yield window
    assert window.problems() == []


def numbers_in(text):
    return [float(x) for x in re.findall(r"-?\d+\.\d{3}", text)]


def row_of(window, label):
    script = "return [...document.querySelectorAll('#tokens tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    (found,) = [row for row in window.run(script) if row[0] == label]
    return found


def token(i, end=0):
    return f'#tokens tr[data-end="{end}"][data-index="{i}"] button'


def keep(window, i):
    """Pin a row, if it is not the one that is pinned."""
    script = (
        "const p = document.querySelector('tr.pinned'); return p ? Number(p.dataset.index) : null"
    )
    if window.run(script) != i:
        window.hover(token(i), click=True)


def probabilities(signals, name, layer, head):
    exact = signals[name][layer].probabilities()
    return exact.mean(1) if head < 0 else exact[:, head]


@pytest.mark.parametrize("checkpoint", [0, 1])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("head", [-1, 1])
def test_a_word_and_a_patch_show_the_numbers_of_both_models(
    opened, page, steps, teacher, checkpoint, layer, head
):
    for control, value in (("checkpoint", checkpoint), ("layer", layer), ("head", head)):
        opened.choose(f"#{control}", value)
    student = list(steps.values())[checkpoint]
    ours, theirs = (probabilities(one, TO_IMAGE, layer, head)[0] for one in (student, teacher))
    keep(opened, 2)
    for patch, (x, y) in enumerate(CELLS):
        opened.hover('figure[data-side="student"] .picture', x, y)
        said = opened.text("#readout")
        assert said.startswith(f"“red” → “row {patch // 3 + 1}, column {patch % 3 + 1}”")
        t, s, d = numbers_in(said)
        exact = theirs[2, 1 + patch].item(), ours[2, 1 + patch].item()
        assert (t, s) == pytest.approx(exact, abs=page.tolerance + SHOWN)
        assert d == pytest.approx(exact[1] - exact[0], abs=2 * page.tolerance + SHOWN)
        for i, word in enumerate(WORDS[0]):
            t, s = map(float, row_of(opened, word)[2:])
            exact = theirs[i, 1 + patch].item(), ours[i, 1 + patch].item()
            assert (t, s) == pytest.approx(exact, abs=page.tolerance + SHOWN)


@pytest.mark.parametrize("head", [-1, 0])
def test_the_divergence_of_each_row_stands_beside_its_word(opened, steps, teacher, head):
    opened.choose("#checkpoint", 0)
    opened.choose("#head", head)
    sides = steps["step 0"][TO_IMAGE][0], teacher[TO_IMAGE][0]
    kl = losses.attention_kl(*sides, heads="mean" if head < 0 else None)[0, max(head, 0)]
    shades = []
    for i, word in enumerate(WORDS[0]):
        assert float(row_of(opened, word)[1]) == pytest.approx(kl[i].item(), rel=0.005, abs=SHOWN)
        script = "return document.querySelector(arguments[0]).closest('tr').cells[1].style.backgroundColor"
        shades.append(float(re.findall(r"[\d.]+", opened.run(script, token(i)))[-1]))
    assert sorted(range(4), key=shades.__getitem__) == kl.argsort().tolist()


def test_rows_that_do_not_count_are_shown_as_such(opened):
    opened.choose("#example", 1)
    script = "return [...document.querySelectorAll('#tokens tbody tr')].map(r => [r.className, r.cells[1].textContent, r.querySelector('button').getAttribute('aria-label')])"
    rows = opened.run(script)[:4]
    assert ["out" in one[0] and "padding" in one[0] for one in rows] == [False, False, True, True]
    assert [one[1] for one in rows[2:]] == ["not counted"] * 2
    assert rows[3][2] == "[padding], padding, does not count"
    opened.hover(token(2))
    assert "does not count (padding)" in opened.text("#readout")
    assert opened.text('figure[data-side="student"] .state') == "this row does not count"


def test_patches_as_rows_show_the_words_that_they_look_at(opened, page, steps, teacher):
    opened.choose("#signal", 1)
    opened.choose("#checkpoint", 0)
    opened.hover('figure[data-side="teacher"] .picture', *CELLS[4])
    theirs, ours = (probabilities(x, TO_TEXT, 0, -1)[0] for x in (teacher, steps["step 0"]))
    for i, word in enumerate(WORDS[0]):
        t, s = map(float, row_of(opened, word)[2:])
        exact = theirs[5, i].item(), ours[5, i].item()
        assert (t, s) == pytest.approx(exact, abs=page.tolerance + SHOWN)
    kl = losses.attention_kl(steps["step 0"][TO_TEXT][0], teacher[TO_TEXT][0], heads="mean")[0, 0]
    (said,) = numbers_in(opened.text("#readout"))
    assert said == pytest.approx(kl[5].item(), rel=0.005, abs=SHOWN)
    most = float(opened.text('figure[data-side="kl"] .high'))
    assert most == pytest.approx(kl.max().item(), rel=0.005, abs=SHOWN)


def test_the_strongest_colour_lies_where_a_word_looks_most(opened, teacher):
    opened.hover(token(3))
    script = """
        const c = document.querySelector('figure[data-side="teacher"] canvas');
        const all = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        const at = (x, y) => 4 * (Math.round(y * c.height) * c.width + Math.round(x * c.width)) + 3;
        return arguments[0].map(([x, y]) => all[at(x, y)])"""
    shades = torch.tensor(opened.run(script, CELLS))
    exact = probabilities(teacher, TO_IMAGE, 0, -1)[0, 3, 1:]
    assert shades.argmax() == exact.argmax()
    assert shades.argmin() == exact.argmin()


def test_the_overview_picks_a_layer_and_a_head(opened):
    opened.hover("#grid tr:nth-child(3) td:nth-child(3) button", click=True)
    opened.wait("return document.documentElement.dataset.ready.startsWith('0/0/1/1/1/')")
    script = "return ['#layer', '#head'].map((x) => document.querySelector(x).value)"
    assert opened.run(script) == ["1", "1"]


def test_keys_do_what_a_mouse_does(opened):
    opened.press(browser.ESCAPE)
    opened.run("document.querySelector('#tokens button[tabindex=\"0\"]').focus()")
    assert opened.text("#readout").startswith("“[CLS]”")
    opened.press(browser.DOWN, browser.DOWN)
    assert opened.text("#readout").startswith("“red”")
    opened.press(browser.ENTER)
    assert opened.run("return document.activeElement.getAttribute('aria-pressed')") == "true"
    opened.run("document.querySelector('figure[data-side=\"teacher\"] .picture').focus()")
    opened.press(browser.RIGHT, browser.RIGHT, browser.DOWN)
    assert "“red” → “row 2, column 2”" in opened.text("#readout")
    opened.press(browser.ESCAPE)
    assert opened.text("#readout").startswith("Choose a word or a patch")


def test_every_control_has_a_name(opened):
    unnamed = opened.run(
        "return [...document.querySelectorAll('select, input, button, img, [tabindex], table, section')]"
        ".filter(e => e.offsetParent !== null && !(e.labels && e.labels.length) && !e.textContent.trim()"
        " && !['aria-label', 'aria-labelledby', 'alt'].some(a => e.hasAttribute(a))).map(e => e.outerHTML)"
    )
    assert unnamed == []
    script = "return document.querySelector(arguments[0]).getAttribute(arguments[1])"
    assert opened.run(script, "#readout", "aria-live") == "polite"
    assert opened.run(script, "#checkpoint", "aria-valuetext") == "step 9"


def test_light_and_dark_follow_the_system_and_the_button(opened):
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = opened.run(paper)
    opened.prefer("dark")
    dark = opened.run(paper)
    assert light != dark
    opened.hover("#theme", click=True)
    assert (opened.text("#theme"), opened.run(paper)) == ("Theme: light", light)
    opened.prefer("light")
    opened.hover("#theme", click=True)
    assert (opened.text("#theme"), opened.run(paper)) == ("Theme: dark", dark)


def test_unequal_heads_have_a_picker_each(window, tmp_path):
    ours, theirs = shown.signals(0), shown.signals(2, heads=3)
    page = dk.view(ours, theirs, words=WORDS)
    window.open(page.save(tmp_path / "view.html"))
    window.choose("#head", 1)
    window.choose("#teacher-head", 2)
    keep(window, 2)
    window.hover('figure[data-side="student"] .picture', *CELLS[3])
    t, s, _ = numbers_in(window.text("#readout"))
    exact = [probabilities(x, TO_IMAGE, 0, h)[0, 2, 4].item() for x, h in ((theirs, 2), (ours, 1))]
    assert [t, s] == pytest.approx(exact, abs=page.tolerance + SHOWN)
    assert row_of(window, "red")[1] == "\N{EN DASH}"  # heads of unequally many are not compared


@pytest.mark.parametrize(("modality", "row"), [("text", 2), ("image", 0)])
def test_attention_within_one_modality(window, tmp_path, modality, row):
    torch.manual_seed(3)
    count = {"text": 4, "image": 5}[modality]
    attention = dk.Attention.from_scores(torch.randn(1, 2, count, count))
    given = {"words": WORDS[:1]} if modality == "text" else {"images": torch.rand(1, 3, 8, 8)}
    page = dk.view(attention, **given)
    window.open(page.save(tmp_path / "view.html"))
    window.away()
    exact = attention.probabilities().mean(1)[0]
    window.hover(token(row))
    value = float(row_of(window, {"text": "[CLS]", "image": "[image 0]"}[modality])[3])
    assert value == pytest.approx(exact[row, 0].item(), abs=page.tolerance + SHOWN)
    assert window.problems() == []


def test_hostile_text_runs_nothing(window, tmp_path):
    hostile = [
        '</script><img src=x onerror="window.hit=1">',
        "<svg onload=window.hit=1>",
        "<b>bold</b>",
        "x",
    ]
    steps = {hostile[0]: shown.signals(0), hostile[1]: shown.signals(2)}
    page = dk.view(steps, shown.signals(1), words=[hostile, hostile])
    window.open(page.save(tmp_path / "view.html"))
    for i in range(4):
        window.hover(token(i))
        assert hostile[i] in window.text("#readout")
    assert window.texts("#tokens button")[:4] == hostile
    assert window.text("#checkpoint-name") == hostile[1]
    assert window.run("return document.querySelectorAll('svg, b, img[src=x]').length") == 0
    assert window.run("return window.hit === undefined")
    assert window.problems() == []


def test_a_notebooks_frame_draws(window, page, tmp_path):
    file = tmp_path / "notebook.html"
    file.write_text(f"<!doctype html><h1>cell</h1>{page._repr_html_()}", encoding="utf-8")
    window.call("url", {"url": file.as_uri()})
    window.call("frame", {"id": window.find("iframe")})
    try:
        window.wait("return document.documentElement.dataset.ready !== undefined")
        assert numbers_in(window.text("#readout"))
    finally:
        window.call("frame", {"id": None})


def test_sixteen_examples_of_twelve_layers_and_heads_open_in_a_second(window, tmp_path):
    generator = torch.Generator().manual_seed(0)
    known = dk.TokenAxis("text"), dk.TokenAxis("image", special=(0,), grid=(7, 7))

    def side():
        sizes = (16, 12, 16, 8), (16, 12, 50, 8)
        layers = [
            dk.Attention(*(torch.randn(size, generator=generator) for size in sizes))
            for _ in range(12)
        ]
        return dk.Signals({TO_IMAGE: layers}, axes={TO_IMAGE: known})

    page = dk.view(side(), side())
    assert len(page.html.encode()) < 5_000_000
    file = page.save(tmp_path / "view.html")
    # processor time: how long it takes by the clock depends on what else the machine does
    assert min(window.opening(file)[1] for _ in range(3)) < 1
