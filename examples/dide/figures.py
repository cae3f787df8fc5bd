"""The demo's pictures: learning curves, and attention drawn over the scene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from data import GRID

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

# Okabe and Ito's colours, told apart with any kind of colour vision
COLORS = {"teacher": "#222222", "alone": "#999999", "soft labels": "#E69F00", "DiDE": "#0072B2"}
SCENE_PIXELS = 24
RIGHT, WRONG = "\N{CHECK MARK}", "\N{MULTIPLICATION SIGN}"
HEAT = LinearSegmentedColormap.from_list("heat", ["#1b1b1b", "#5b2a86", "#e4572e", "#ffe066"])


@dataclass(frozen=True)
class Panel:
    """What one model did with one question about one scene."""

    model: str
    attention: np.ndarray  # (9,) of the digit's word over the cells
    answer: str
    kl: float | None  # to the teacher's, None for the teacher's own


@dataclass(frozen=True)
class Example:
    """One row of the attention picture."""

    image: np.ndarray  # (24, 24, 3)
    question: str
    word: str
    answer: str
    panels: list[Panel]


def draw_learning_curves(
    path: Path, histories: dict[str, list[tuple[int, float]]], teacher: float
) -> None:
    """Validation accuracy of the students over the steps, under the teacher's."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    axes.axhline(100 * teacher, color=COLORS["teacher"], linestyle="--", linewidth=1.5)
    last = max(step for history in histories.values() for step, _ in history)
    axes.annotate(
        f"teacher {100 * teacher:.1f}", (0.01 * last, 100 * teacher), xytext=(0, -5),
        textcoords="offset points", va="top", color=COLORS["teacher"],
    )  # fmt: skip
    for name, history in histories.items():
        steps, values = zip(*history, strict=True)
        percent = [100 * value for value in values]
        axes.plot(steps, percent, color=COLORS[name], linewidth=2.2, marker="o", markersize=4)
    for name, height in apart({n: 100 * h[-1][1] for n, h in histories.items()}, 5.0).items():
        label = f" {name} {100 * histories[name][-1][1]:.1f}"
        axes.annotate(
            label, (last, height), va="center", color=COLORS[name], fontweight="bold",
            annotation_clip=False,
        )  # fmt: skip
    axes.set(
        xlabel="training steps of the student",
        ylabel="validation accuracy (%)",
        title="A dual encoder learns from a fusion encoder",
        ylim=(25, 103),
        xlim=(0, last),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_attention(path: Path, examples: list[Example]) -> None:
    """Where each model looks for the digit that the question names."""
    columns = 1 + len(examples[0].panels)
    figure, grid = plt.subplots(
        len(examples), columns, figsize=(2.5 * columns, 2.95 * len(examples)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    top = max(panel.attention.max() for example in examples for panel in example.panels)
    for row, example in zip(grid, examples, strict=True):
        _draw_scene(row[0], example)
        for axes, panel in zip(row[1:], example.panels, strict=True):
            drawn = _draw_panel(axes, example, panel, top)
    bar = figure.colorbar(drawn, ax=grid[:, -1], shrink=0.7 / len(examples) ** 0.5, aspect=18)
    bar.set_label("share of attention on the cell")
    figure.suptitle(
        "Text-to-image attention of the digit's word, last layer, mean of the heads", fontsize=13
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_scene(axes: Axes, example: Example) -> None:
    axes.imshow(example.image, interpolation="nearest")
    axes.set_title(f"{example.question}?", fontsize=10, fontweight="bold")
    axes.set_xlabel(example.answer, fontsize=10)
    _lines(axes)


def _draw_panel(axes: Axes, example: Example, panel: Panel, top: float) -> mpl.image.AxesImage:
    heat = np.kron(panel.attention.reshape(GRID, GRID), np.ones((SCENE_PIXELS // GRID,) * 2))
    drawn = axes.imshow(heat, cmap=HEAT, vmin=0, vmax=top, interpolation="nearest")
    ink = example.image.max(-1)
    axes.imshow(np.ones_like(example.image), alpha=0.75 * ink, interpolation="nearest")
    color = COLORS.get(panel.model, COLORS["DiDE"])
    axes.set_title(panel.model, color=color, fontsize=11, fontweight="bold")
    right = panel.answer == example.answer
    verdict = f"{panel.answer} {RIGHT if right else WRONG}"
    kl = "" if panel.kl is None else f"\nKL to teacher {panel.kl:.2f}"
    axes.set_xlabel(verdict + kl, fontsize=10, color="#1a7a3a" if right else "#b3261e")
    _lines(axes)
    return drawn


def _lines(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for i in range(1, GRID):
        axes.axhline(i * SCENE_PIXELS / GRID - 0.5, color="white", linewidth=0.6, alpha=0.5)
        axes.axvline(i * SCENE_PIXELS / GRID - 0.5, color="white", linewidth=0.6, alpha=0.5)


def apart(heights: dict[str, float], gap: float) -> dict[str, float]:
    """Label heights that do not overlap, in the same order."""
    placed: dict[str, float] = {}
    floor = -np.inf
    for name, height in sorted(heights.items(), key=lambda one: one[1]):
        floor = placed[name] = max(height, floor + gap)
    return placed
