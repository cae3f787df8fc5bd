"""``python -m distillkit view``: saved signals, functions, and files that it does not trust."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import distillkit as dk
from distillkit.__main__ import main
from tests.support import shown, tiny
from tests.support.shown import TO_IMAGE, TO_TEXT, WORDS

HERE = "tests.view.test_command:"
TOKENS = [{"modality": "text", "length": "ids"}, {"modality": "image", "grid": [1, 2]}]


class Pair(torch.nn.Module):
    """Words and patches in one sequence."""

    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, ids, patches):
        x = torch.cat([ids[..., None].expand(-1, -1, 8).float(), patches], 1)
        return {"logits": self.head(self.attention(x, x, x)[0][:, 0])}


def build():
    adapter = dk.DeclarativeAdapter(streams={"joint": "attention"}, tokens={"joint": TOKENS}, logits="logits")  # fmt: skip
    distiller = dk.Distiller(Pair(), Pair(), dk.load_recipe("dide"), student_adapter=adapter, teacher_adapter=adapter)  # fmt: skip
    return distiller, {"ids": torch.tensor([[1, 2, 3]]), "patches": torch.randn(1, 2, 8)}


def build_with_words():
    return *build(), [["what", "is", "it"]], torch.rand(1, 3, 4, 8)


def build_a_model():
    return tiny.Fusion(), {}


class Planted:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_file_of_signals_becomes_the_page_that_view_makes(tmp_path, capsys):
    image = torch.rand(2, 3, 8, 12)
    steps = {"a": shown.signals(0), "b": shown.signals(2)}
    saved = {"student": steps, "teacher": shown.signals(1), "words": WORDS, "images": image}
    torch.save(saved, "signals.pt")
    assert main(["view", "signals.pt", "-o", "page.html"]) == 0
    assert "page.html: 0.0" in capsys.readouterr().err
    made = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert made == dk.view(steps, shown.signals(1), words=WORDS, images=image).html


def test_signals_alone_and_attentions_are_read_too(tmp_path):
    torch.save(shown.signals(0), "alone.pt")
    assert main(["view", "alone.pt"]) == 0
    page = (tmp_path / "view.html").read_text(encoding="utf-8")
    assert not shown.facts_of(page)["has_teacher"]
    used = dk.Attention.from_probabilities(torch.full((1, 1, 2, 4), 0.25))
    torch.save({"student": [used], "words": [["a", "b"]], "images": torch.rand(1, 1, 4, 4)}, "p.pt")
    assert main(["view", "p.pt"]) == 0


def test_a_function_brings_a_distiller_with_words_and_images(tmp_path):
    for name in ("build", "build_with_words"):
        assert main(["view", HERE + name, "-o", f"{name}.html"]) == 0
    facts = shown.facts_of((tmp_path / "build_with_words.html").read_text(encoding="utf-8"))
    assert [one["name"] for one in facts["signals"]] == [TO_IMAGE, TO_TEXT]
    assert facts["axes"][0]["labels"] == [["what", "is", "it"]]
    assert facts["shown"] == [[0]]


def test_a_file_that_would_execute_something_is_refused(tmp_path, capsys):
    torch.save({"student": shown.signals(0), "words": Planted()}, "bad.pt")
    assert main(["view", "bad.pt"]) == 1
    assert "which loading could execute" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "view.html").exists()


@pytest.mark.parametrize(
    ("source", "saved", "message"),
    [
        ("absent.pt", None, "is no file"),
        ("x.pt", {"teacher": 1}, "a dictionary with 'teacher'"),
        ("x.pt", [1], "got list"),
        ("x.pt", {"student": {}, "imags": 1}, "takes no 'imags'"),
        (HERE + "build_a_model", None, "got (Fusion, dict)"),
        (HERE + "biuld", None, "biuld"),
    ],
)
def test_what_is_no_signals_is_said(source, saved, message, capsys):
    if saved is not None:
        torch.save(saved, source)
    assert main(["view", source]) == 1
    assert message in capsys.readouterr().err


def test_a_damaged_file_is_said(capsys):
    torch.save(shown.signals(0), "x.pt")
    with Path("x.pt").open("r+b") as file:
        file.truncate(600)
    assert main(["view", "x.pt"]) == 1
    assert "is damaged" in capsys.readouterr().err
