"""Attention drawn with matplotlib: the axes hold the numbers, and are those that were given."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from distillkit import losses, plot
from distillkit.errors import OptionError, ShapeError
from tests.support import shown
from tests.support.shown import TO_IMAGE

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


@pytest.fixture(autouse=True)
def _no_figure_stays():
    yield
    plt.close("all")


def test_a_map_lies_over_its_image():
    weights = torch.tensor([0.1, 0.2, 0.3, 0.0, 0.4, 0.0])
    given = plt.subplots()[1]
    ax = plot.attention_over_image(weights, torch.rand(8, 12, 3), grid=(2, 3), ax=given)
    assert ax is given
    below, above = ax.images
    assert below.get_extent() == above.get_extent() == [-0.5, 11.5, 7.5, -0.5]
    assert torch.equal(torch.from_numpy(above.get_array().data), weights.view(2, 3))
    assert above.get_clim() == (0, pytest.approx(0.4))
    fixed = plot.attention_over_image(weights.view(2, 3), torch.rand(8, 12), grid=(2, 3), largest=1)
    assert fixed is not given
    assert fixed.images[-1].get_clim() == (0, 1)


def test_teacher_and_student_share_a_scale_and_their_difference_has_its_own():
    student, teacher = torch.tensor([0.7, 0.3]), torch.tensor([0.1, 0.9])
    axes = plot.compare_over_image(student, teacher, torch.rand(4, 8), grid=(1, 2))
    assert [ax.get_title() for ax in axes] == [
        "teacher",
        "student",
        "student \N{MINUS SIGN} teacher",
    ]
    maps = [torch.from_numpy(ax.images[-1].get_array().data)[0] for ax in axes]
    assert torch.equal(maps[0], teacher)
    assert torch.equal(maps[1], student)
    assert torch.equal(maps[2], student - teacher)
    limits = [ax.images[-1].get_clim() for ax in axes]
    assert limits[0] == limits[1] == (0, pytest.approx(0.9))
    assert limits[2] == (pytest.approx(-0.6), pytest.approx(0.6))


def test_rows_have_the_divergence_of_the_losses_and_padding_is_hatched():
    sides = shown.signals(0)[TO_IMAGE][0], shown.signals(1)[TO_IMAGE][0]
    ax = plot.row_divergence(*sides, list("abcd"), example=1)
    exact = losses.attention_kl(*sides, heads="mean")[1, 0]
    widths = [bar.get_width() for bar in ax.patches if not bar.get_hatch()]
    assert widths[:2] == pytest.approx(exact[:2].tolist())
    assert widths[2:] == [0, 0]
    assert len([bar for bar in ax.patches if bar.get_hatch()]) == 2
    assert [label.get_text() for label in ax.get_yticklabels()] == list("abcd")


def test_layers_by_heads_has_the_mean_over_rows_that_count():
    student, teacher = shown.signals(0)[TO_IMAGE], shown.signals(1)[TO_IMAGE]
    ax = plot.layers_by_heads(student, teacher)
    drawn = torch.from_numpy(ax.images[-1].get_array().data)
    for layer in range(2):
        sides = student[layer], teacher[layer]
        kl, rows = losses.attention_kl(*sides), losses.shared_rows(*sides)
        exact = [kl[:, head][rows[:, head]].mean().item() for head in range(2)]
        assert drawn[layer].tolist() == pytest.approx(exact)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: plot.attention_over_image(torch.rand(7), torch.rand(4, 4), grid=(2, 3)), ShapeError, "takes 6 probabilities"),
        (lambda s: plot.compare_over_image(*torch.rand(2, 4), torch.rand(4, 4), grid=(2, 2), axes=[plt.gca()]), OptionError, "three axes; got 1"),
        (lambda s: plot.row_divergence(s[0], s[0], ["a"]), ShapeError, "4 rows, but 1 words"),
        (lambda s: plot.layers_by_heads(s, s[:1]), ShapeError, "2 of the student and 1"),
        (lambda s: plot.layers_by_heads([], []), ShapeError, "0 of the student"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call(shown.signals(0)[TO_IMAGE])


def test_without_matplotlib_the_extra_is_named():
    code = (
        "import sys, torch; sys.modules['matplotlib'] = sys.modules['matplotlib.pyplot'] = None\n"
        "from distillkit import plot\n"
        "plot.attention_over_image(torch.ones(1), torch.ones(1, 1), grid=(1, 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'distillkit[plot]'" in done.stderr.splitlines()[-1]
