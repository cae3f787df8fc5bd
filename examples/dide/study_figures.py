"""The study's pictures: curves over steps and over CPU time, attention against accuracy, speed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from figures import COLORS, apart
from matplotlib.axes import Axes
from results import FUSED, NOT_REUSED, ONCE, STORED, Line, Results

# Okabe and Ito's colours, as figures.COLORS
METHODS = {
    **COLORS,
    "labels + attention": "#CC79A7",
    "DiDE, half": "#009E73",
}
STYLES = {NOT_REUSED: ":", ONCE: "-", STORED: "--"}


def draw_learning(path: Path, results: Results) -> None:
    """Validation accuracy of every method over its steps, and over what they cost."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", sharey=True)
    students = results.students("comparison")
    steps = max(students[0].steps)
    for axes, at in zip(panels, (_step, _seconds), strict=True):
        ends = {}
        for one in students:
            lines = results.of(one.name, steps, one.seeds)
            x, low, mean, high = _band(lines, at)
            axes.plot(x, mean, color=METHODS[one.name], linewidth=2)
            axes.fill_between(x, low, high, color=METHODS[one.name], alpha=0.15, linewidth=0)
            ends[one.name] = (x[-1], mean[-1])
        _name_curves(axes, ends)
        _teacher(axes, results)
        axes.set(ylim=(25, 102), xlim=(0, None))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(xlabel="training steps of the student", ylabel="validation accuracy (%)")
    panels[1].set(xlabel="CPU seconds of training, one thread")
    seeds = len(students[0].seeds)
    figure.suptitle(f"Mean of {seeds} seeds; the band is from the lowest to the highest")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_kl(path: Path, results: Results) -> None:
    """How far the attention is from the teacher's against accuracy, while training goes on."""
    figure, axes = plt.subplots(figsize=(7.5, 5.2), layout="constrained")
    students = results.students("comparison")
    steps = max(students[0].steps)
    for one in students:
        for number, line in enumerate(results.of(one.name, steps, one.seeds)):
            kl = [reading[2]["attention_kl"] for reading in line["readings"]]
            right = [100 * reading[2]["accuracy"] for reading in line["readings"]]
            color, name = METHODS[one.name], one.name if number == 0 else None
            axes.plot(kl, right, color=color, linewidth=1.2, alpha=0.7)
            axes.scatter(kl[:-1], right[:-1], color=color, s=7, alpha=0.7)
            axes.scatter(kl[-1], right[-1], color=color, s=60, label=name, edgecolor="white")
    _teacher(axes, results)
    axes.set(
        xscale="log", xlabel="KL of the cross-modal attention to the teacher's (validation)",
        ylabel="validation accuracy (%)", title="Every reading of every seed; large: the last",
    )  # fmt: skip
    axes.invert_xaxis()
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_throughput(path: Path, results: Results) -> None:
    """How many times faster than fusion, by what is reused."""
    timings = results.study.throughput.runs()
    figure, panels = plt.subplots(
        1, len(timings), figsize=(4.4 * len(timings), 4.6), layout="constrained", sharey=True,
        squeeze=False,
    )  # fmt: skip
    scenes = results.study.throughput.scenes
    for axes, timing in zip(panels[0], timings, strict=True):
        grid = results[timing.key]["grid"]
        for shade, n in enumerate(scenes):
            color = plt.get_cmap("viridis")(0.9 * (1 - shade / max(1, len(scenes) - 1)))
            of_n = [(m, seconds) for k, m, seconds in grid if k == n]
            for way, style in STYLES.items():
                y = [seconds[FUSED] / seconds[way] for _, seconds in of_n]
                label = f"N = {n}" if way == ONCE else None
                axes.plot([m for m, _ in of_n], y, style, color=color, label=label, linewidth=1.6)
        axes.axhline(1, color="#b3261e", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="M, questions about each scene")
        axes.set_title(f"{timing.depth} blocks")
        axes.set_xticks(timing.questions, [str(m) for m in timing.questions])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("times faster than the fusion encoder")
    panels[0, 0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle("Solid: each side encoded once; dashed: both stored; dotted: nothing reused")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _step(reading: list) -> float:
    return reading[0]


def _seconds(reading: list) -> float:
    return reading[1]


def _band(lines: list[Line], at: Callable[[list], float]) -> tuple[list[float], ...]:
    """x, then lowest, mean and highest accuracy over the seeds, in percent."""
    columns = list(zip(*(line["readings"] for line in lines), strict=True))
    x = [statistics.mean(map(at, column)) for column in columns]
    values = [[100 * reading[2]["accuracy"] for reading in column] for column in columns]
    return x, [min(v) for v in values], [statistics.mean(v) for v in values], list(map(max, values))


def _name_curves(axes: Axes, ends: dict[str, tuple[float, float]]) -> None:
    right = max(x for x, _ in ends.values())
    for name, height in apart({name: y for name, (_, y) in ends.items()}, 4.5).items():
        text = f" {name} {ends[name][1]:.1f}"
        axes.annotate(
            text, (right, height), color=METHODS[name], fontweight="bold", va="center", fontsize=9,
            annotation_clip=False,
        )  # fmt: skip


def _teacher(axes: Axes, results: Results) -> None:
    teacher = results.study.teachers[0]
    lines = results.of(teacher.name, teacher.steps, results.students("comparison")[0].seeds)
    mean = 100 * statistics.mean(line["validation"]["all"] for line in lines)
    axes.axhline(mean, color=COLORS["teacher"], linestyle="--", linewidth=1.2)
    axes.annotate(
        f"teacher {mean:.1f}", (0.01, mean), xycoords=("axes fraction", "data"), xytext=(0, -4),
        textcoords="offset points", va="top", fontsize=9,
    )  # fmt: skip
