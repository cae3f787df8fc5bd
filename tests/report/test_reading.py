"""What a report reads, warns of and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import distillkit as dk
from distillkit.__main__ import main
from distillkit._report.findings import findings
from distillkit._report.page import report_of
from distillkit._report.reading import read_run
from tests.support.shown import elements, facts_of

LOG = Path("run/run.jsonl")
STILL = (
    "still never changed: 0.5 at all 10 logged steps. Nothing is learned from it, or it compares "
    "nothing: print(distiller.check(batch))"
)
HOSTILE = '</script><img src=x onerror="window.hit=1">'


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(folder, steps, *, close=True):
    """A log of numbers by name; `steps` is step -> values."""
    log = dk.RunLog(folder)
    for step, values in steps.items():
        log.write(values, step=step)
    if close:
        log.close()
    else:
        log._files.close()
    return read_run(folder)


def texts(run, kind):
    return [one.text for one in findings(run) if one.kind == kind]


def test_a_report_holds_every_logged_number(capsys):
    steps = {s: {"loss": 2.0 / s, "a": 1.0 / s, "weight/a": 2.0, "lr": 0.1 * s} for s in (1, 2, 5)}
    write("run", steps)
    assert main(["report", "run", "-o", "page.html"]) == 0
    assert "page.html: 0.0" in capsys.readouterr().err
    (run,) = facts_of(Path("page.html").read_text(encoding="utf-8"))["runs"]
    assert run["rows"]["step"] == [1, 2, 5]
    assert run["rows"]["loss"] == [2.0, 1.0, 0.4]
    assert run["rows"]["parts"] == {"a": [1.0, 0.5, 0.2]}
    assert run["rows"]["weights"] == {"a": [2.0, 2.0, 2.0]}
    assert run["rows"]["values"] == {"lr": [0.1, 0.2, 0.5]}


def test_several_runs_have_labels_of_their_own():
    for folder in ("one/run", "two/run", "three"):
        write(folder, {1: {"loss": 1.0}})
    page = report_of([read_run(x) for x in ("one/run", "two/run", "three")])
    assert [one["label"] for one in facts_of(page)["runs"]] == ["run", "run (2)", "three"]


def test_what_went_wrong_is_a_problem():
    nan = float("nan")
    steps = {
        s: {"loss": nan if s in (3, 7) else 1.0 / s, "still": 0.5, "weight/still": 1.0,
            "off": 0.0, "weight/off": 0.0, "ends": 1.0 / s, "weight/ends": float(s < 5)}
        for s in range(1, 11)
    }  # fmt: skip
    run = write("run", steps, close=False)
    assert texts(run, "problem") == [
        "loss was NaN at 2 logged steps, first at step 3, last at step 7",
        STILL,
    ]
    assert texts(run, "note") == [
        "off had the weight 0 at every logged step: it was not computed",
        "ends has had the weight 0 after step 4: it is not computed any more",
        "the log was not closed: the training goes on, or was interrupted",
    ]


def test_a_run_without_fault_has_no_findings():
    steps = {s: {"loss": 1.0 / s, "a": 1.0 / s, "weight/a": 1.0} for s in range(1, 9)}
    assert findings(write("run", steps)) == []


def test_a_reading_that_others_maps_explain_as_well_is_noted():
    write("run", {1: {"loss": 1.0}})
    look = {"kind": "look", "step": 1, "elapsed": 1.0, "seconds": 0.1}
    LOG.write_text(
        LOG.read_text(encoding="utf-8")
        + json.dumps({**look, "own": {"t": 0.5}, "wrong": {"t": 0.4}})
        + "\n",
        encoding="utf-8",
    )
    assert any("nothing of the single example" in one for one in texts(read_run("run"), "note"))


def test_lines_that_are_damaged_are_left_out_and_named():
    write("run", {s: {"loss": float(s)} for s in (1, 2, 3)})
    lines = LOG.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2].replace('"loss":2.0', '"loss":"2"')
    lines.insert(4, "\x00\x00")
    LOG.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run = read_run("run")
    assert [row.line.step for row in run.rows] == [1, 3]
    assert len(run.notes) == 2
    assert run.notes[0].startswith("run.jsonl, line 3, is left out: loss")
    assert "line 5, is left out: it is cut off or no JSON" in run.notes[1]


def test_keys_of_a_later_version_of_the_same_format_are_left_alone():
    write("run", {1: {"loss": 1.0}})
    LOG.write_text(
        LOG.read_text(encoding="utf-8").replace('"kind":"step"', '"kind":"step","new":{"x":1}'),
        encoding="utf-8",
    )
    assert read_run("run").notes == []


def test_an_evaluation_of_a_checkpoint_belongs_to_its_step():
    write("run", {s: {"loss": float(s)} for s in (1, 2, 3)})
    run = write("run", {2: {"eval_loss": 7.0}, 3: {"loss": 30.0}})
    assert [row.line.loss for row in run.rows] == [1.0, 2.0, 30.0]
    assert run.rows[1].line.values == {"eval_loss": 7.0}


def test_hostile_text_stays_text():
    write("run", {s: {"loss": 1.0, HOSTILE: 1.0 / s, f"weight/{HOSTILE}": 1.0} for s in (1, 2)})
    page = report_of([read_run("run")])
    found = elements(page)
    assert not [tag for tag in found.tags if tag[0] == "img"]
    assert list(facts_of(page)["runs"][0]["rows"]["parts"]) == [HOSTILE]


def test_a_long_log_is_thinned_and_says_so(monkeypatch):
    monkeypatch.setattr("distillkit._report.page._ROWS", 10)
    steps = {s: {"loss": float("inf") if s == 32 else 1.0 / s} for s in range(1, 100)}
    (run,) = facts_of(report_of([write("run", steps)]))["runs"]
    assert run["rows"]["step"][-1] == 99
    assert 32 in run["rows"]["step"]
    assert len(run["rows"]["step"]) < 13
    assert any("of 99 logged steps are shown" in one["text"] for one in run["findings"])


@pytest.mark.parametrize(
    ("files", "command", "message"),
    [
        ({"runs/a/run.jsonl": "x"}, ["runs/b"], "no folder 'runs/b'; did you mean 'runs/a'?"),
        ({"runs/a/run.jsonl": "x"}, ["runs"], "holds no run.*runs in it: 'a'"),
        ({"a/run.jsonl": ""}, ["a"], "has no logged step: the file is empty"),
        ({"a/run.jsonl": '{"kind":"be'}, ["a"], "(?s)no logged step.*line 1, is left out"),
        ({"a/run.jsonl": '{"kind":"begin","format":7,"time":1}\n'}, ["a"], "is of format 7"),
        ({"a": "x"}, ["a"], "'a' is a file"),
    ],
)
def test_what_is_no_run_is_said(tmp_path, files, command, message, capsys):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert main(["report", *command]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["report", "run", "--ouput", "x"],
            "report has no option '--ouput'; did you mean '--output'?",
        ),
        (["cache", "fill", "a", "b:c", "--recipes=d"], "did you mean '--recipe'"),
        (["plugins", "more"], "unrecognized arguments: more"),
        (["report"], "RUN"),
    ],
)
def test_a_misspelt_option_is_said(given, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(given)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_said(capsys):
    write("run", {1: {"loss": 1.0}})
    assert main(["report", "run", "-o", "no/such/page.html"]) == 1
    assert "cannot be written to 'no/such/page.html'" in capsys.readouterr().err
