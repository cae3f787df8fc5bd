"""The report in a real browser: its curves, its numbers and its controls are the log's."""

from __future__ import annotations

import re

import pytest

import distillkit as dk
from distillkit._report.page import report_of
from distillkit._report.reading import read_run
from tests.support import browser, runs
from tests.support.runs import TO_IMAGE, TO_TEXT, lines

pytestmark = [
    pytest.mark.skipif(not (browser.CHROMIUM and browser.DRIVER), reason=browser.MISSING),
    pytest.mark.xdist_group("browser"),
]
STEPS = 12
HOSTILE = '</script><img src=x onerror="window.hit=1">'


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two real trainings, the first interrupted and resumed, with a NaN."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("first", 0), ("second", 1)):
        made, watch = runs.distiller(seed), runs.watch()
        with dk.RunLog(root / name, made, watch=watch) as log:
            runs.train(log, made, STEPS)
    with dk.RunLog(root / "first") as log:
        for step, loss in ((STEPS + 1, float("nan")), (STEPS + 2, 0.5)):
            log.write({"loss": loss, "learning_rate": 0.1}, step=step)
    return [root / "first", root / "second"]


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_of([read_run(folders[0])]), encoding="utf-8")
    return path


@pytest.fixture
def opened(window, page):
    window.prefer("light")
    window.open(page)
    window.away()
    yield window
    assert window.problems() == []


def chart(title):
    """A selector of the chart of this title, in the first section that has one."""
    return f"svg.chart[aria-label^={title!r}]".replace("'", '"')


def legend(window, title):
    """Label -> value, beneath a chart."""
    script = """
        const f = document.querySelector(arguments[0]).closest('figure');
        return [...f.querySelectorAll('.legend li')].map((x) =>
            [x.querySelector('.name').textContent, x.querySelector('.value').textContent])"""
    return dict(window.run(script, chart(title)))


def at(window, title):
    script = "return document.querySelector(arguments[0]).closest('figure').querySelector('.at').textContent"
    return window.run(script, chart(title))


def place_of(x, low, high):
    """Where a place on the x axis lies, as a part of the chart's width."""
    return (58 + (x - low) / (high - low) * (520 - 58 - 12)) / 520


def hover_step(window, title, step):
    window.hover(chart(title), place_of(step, 1, STEPS + 2), 0.3)


def test_there_is_a_curve_of_every_part_and_weight(opened, folders):
    titles = opened.texts("#curves figcaption")
    assert titles == [
        "Loss",
        "What the loss is made of: weight \N{MULTIPLICATION SIGN} part",
        TO_IMAGE,
        TO_TEXT,
    ]
    paths = "return [...document.querySelectorAll('#curves svg.chart')].map(s => [...s.querySelectorAll('path')].map(p => p.getAttribute('d')).filter(d => d.includes('L')).length)"
    # the loss has its cross beside its curve, and each part its weight
    assert opened.run(paths) == [2, 2, 2, 2]
    labels = "return [...document.querySelector(arguments[0]).querySelectorAll('text')].map(t => t.textContent)"
    largest = max(one["weights"][TO_IMAGE] for one in lines(folders[0], "step")[:STEPS])
    assert f"{largest:.4g}" in opened.run(labels, chart(TO_IMAGE))
    points = "return document.querySelector(arguments[0]).querySelector('path.raw').getAttribute('d').split(/[ML]/).length - 1"
    assert opened.run(points, chart("Loss")) == STEPS + 1


@pytest.mark.parametrize("step", [1, 5, 12])
def test_hovering_reads_what_was_logged(opened, folders, step):
    (line,) = [one for one in lines(folders[0], "step") if one["step"] == step]
    hover_step(opened, "Loss", step)
    assert float(legend(opened, "Loss")["loss"]) == line["loss"]
    assert at(opened, "Loss").startswith(f"step {step}, ")
    # every chart follows
    read = legend(opened, TO_TEXT)
    assert float(read["value"]) == line["parts"][TO_TEXT]
    assert float(read["weight"]) == line["weights"][TO_TEXT]
    shares = legend(opened, "What the loss is made of")
    assert float(shares[TO_TEXT]) == pytest.approx(
        line["weights"][TO_TEXT] * line["parts"][TO_TEXT], rel=1e-6
    )


def test_a_value_that_is_no_number_is_a_cross_and_a_word(opened):
    hover_step(opened, "Loss", STEPS + 1)
    assert legend(opened, "Loss")["loss"] == "nan"
    assert opened.run("return document.querySelectorAll('#curves path.lost').length") == 1
    assert any("loss was NaN at 1 logged step" in one for one in opened.texts("#findings .problem"))


def test_over_time_the_same_numbers_stand_at_their_seconds(opened, folders):
    rows = read_run(folders[0]).rows
    opened.choose("#over", "seconds")
    row = rows[6]
    x = place_of(row.seconds, rows[0].seconds, rows[-1].seconds)
    opened.hover(chart("Loss"), x, 0.3)
    found = re.match(r"step (\d+), ", at(opened, "Loss"))
    near = min(rows, key=lambda one: abs(one.line.step - int(found[1])))
    assert abs(near.line.step - row.line.step) <= 1  # the mouse moves by whole pixels
    assert float(legend(opened, "Loss")["loss"]) == near.line.loss
    labels = "return [...document.querySelector(arguments[0]).querySelectorAll('text')].map(t => t.textContent)"
    assert any(re.search(r"\d (ms|s)$", one) for one in opened.run(labels, chart("Loss")))


def test_scale_and_smoothing_redraw(opened):
    path = (
        "return document.querySelector(arguments[0]).querySelector(arguments[1]).getAttribute('d')"
    )
    linear = opened.run(path, chart("Loss"), "path.raw")
    opened.choose("#scale", "log")
    assert opened.run(path, chart("Loss"), "path.raw") != linear
    opened.choose("#scale", "linear")
    assert opened.run(path, chart("Loss"), "path.raw") == linear
    opened.choose("#smoothing", "0.8")
    assert opened.run(path, chart("Loss"), "path.smooth") != linear
    assert opened.text("#smoothing-value") == "0.8"


def test_keys_go_from_step_to_step_and_are_spoken(opened, folders):
    steps = lines(folders[0], "step")
    opened.run("document.querySelector(arguments[0]).focus()", chart("Loss"))
    opened.press(browser.RIGHT, browser.RIGHT)
    assert float(legend(opened, "Loss")["loss"]) == steps[1]["loss"]
    assert opened.text("#readout").startswith("step 2, ")
    assert str(steps[1]["loss"]) in opened.text("#readout")
    opened.press(browser.ESCAPE)
    assert at(opened, "Loss").startswith("last: step 14")


def test_the_table_behind_a_chart_has_every_row(opened, folders):
    opened.run("document.querySelector('#curves figure:nth-child(3) details').open = true")
    rows = "return [...document.querySelectorAll('#curves figure:nth-child(3) tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    opened.wait(f"return (() => {{ {rows} }})().length > 0")
    shown = {int(row[0]): row[2:] for row in opened.run(rows)}
    for line in lines(folders[0], "step"):
        if TO_IMAGE in line.get("weights", {}):
            value, weight = shown[line["step"]]
            assert float(weight) == line["weights"][TO_IMAGE]
            assert value == "" or float(value) == line["parts"][TO_IMAGE]


def test_readings_show_own_below_others(opened, folders):
    looks = lines(folders[0], "look")
    title = opened.texts("#reading-charts figcaption")[0]
    assert title == TO_IMAGE
    script = "return [...document.querySelector('#reading-charts .legend').querySelectorAll('.value')].map(x => Number(x.textContent))"
    assert opened.run(script) == [looks[-1]["own"][TO_IMAGE], looks[-1]["wrong"][TO_IMAGE]]


def test_attention_over_time_is_the_viewers_page(opened, folders):
    exact = lines(folders[0], file="attention.jsonl")
    opened.call("frame", {"id": opened.find("iframe")})
    try:
        opened.wait("return document.documentElement.dataset.ready !== undefined")
        assert opened.text("#checkpoint-name") == "step 9"
        assert "red" in opened.texts("#tokens button")
        kl = "return document.querySelector('#grid button:last-child').getAttribute('aria-label')"
        for number, one in enumerate(exact):
            opened.choose("#checkpoint", number)
            first = one["means"][0][0][0][0]  # signal, layer, example, head
            assert opened.run(kl).endswith(f"KL {first}")
    finally:
        opened.call("frame", {"id": None})


def test_light_and_dark_reach_the_frame_too(opened):
    paper = "return getComputedStyle(document.body).backgroundColor"
    inside = "return getComputedStyle(document.querySelector('iframe').contentDocument.body).backgroundColor"
    light = opened.run(paper)
    opened.prefer("dark")
    dark = opened.run(paper)
    assert light != dark
    opened.prefer("light")
    opened.hover("#theme", click=True)
    opened.hover("#theme", click=True)
    assert opened.text("#theme") == "Theme: dark"
    assert (opened.run(paper), opened.run(inside)) == (dark, dark)


def test_comparison_cost_and_citation_are_there(opened):
    compared = opened.text("#compared")
    assert "15 of 15 rows" in compared
    assert "VisionTextDualEncoderModel" in opened.text("#about")
    assert "wang-etal-2022-distilled" in opened.text("#bibtex")
    opened.hover("#copy", click=True)
    opened.wait("return document.querySelector('#copied').textContent !== ''")
    assert opened.text("#copied") in ("copied", "selected: press Ctrl+C")


def test_every_control_and_chart_has_a_name(opened):
    unnamed = opened.run(
        "return [...document.querySelectorAll('select, input, button, [tabindex], table, section, iframe')]"
        ".filter(e => e.offsetParent !== null && !(e.labels && e.labels.length) && !e.textContent.trim()"
        " && !['aria-label', 'aria-labelledby', 'title'].some(a => e.hasAttribute(a))).map(e => e.outerHTML)"
    )
    assert unnamed == []
    label = opened.run(
        "return document.querySelector(arguments[0]).getAttribute('aria-label')", chart("Loss")
    )
    assert "at step 1," in label
    assert "1 no numbers" in label


def test_two_runs_are_curves_of_one_chart(window, folders, tmp_path):
    path = tmp_path / "two.html"
    path.write_text(report_of([read_run(one) for one in folders]), encoding="utf-8")
    window.open(path)
    hover_step(window, "Loss", 5)
    read = legend(window, "Loss")
    for folder in folders:
        (line,) = [one for one in lines(folder, "step") if one["step"] == 5]
        assert float(read[folder.name]) == line["loss"]
    assert len(window.texts("iframe")) == 2
    assert window.texts("#about thead th")[1:] == ["first", "second"]
    assert window.problems() == []


def test_hostile_text_runs_nothing(window, tmp_path):
    folder = tmp_path / "<b>run"
    with dk.RunLog(folder) as log:
        for step in (1, 2, 3):
            log.write(
                {"loss": 1.0 / step, HOSTILE: 1.0, f"weight/{HOSTILE}": 1.0, "__proto__": 2.0},
                step=step,
            )
    path = tmp_path / "page.html"
    path.write_text(report_of([read_run(folder)]), encoding="utf-8")
    window.open(path)
    assert HOSTILE in window.texts("#curves figcaption")
    assert window.text("h1") == "Training report: <b>run"
    assert window.texts("#other-charts figcaption") == ["__proto__"]
    assert window.run("return document.querySelectorAll('img, b:not(#findings b)').length") == 0
    assert window.run("return window.hit === undefined")
    assert window.problems() == []
