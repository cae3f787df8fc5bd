"""Draw the picture of docs/how-to/choose-a-loss.md: python -m tools.draw_divergences."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch

from distillkit import losses

mpl.use("agg")
from matplotlib import pyplot as plt

TEACHER = 0.8
LOSSES = (
    "kl_divergence", "reverse_kl_divergence", "jensen_shannon_divergence",
    "total_variation", "soft_cross_entropy", "universal_logit_distance",
)  # fmt: skip


def curves(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The student's probability of the first class, a loss there, and its slope in the logit."""
    q = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    logit = q.logit().requires_grad_()
    student = torch.stack([logit, torch.zeros_like(logit)], -1)
    teacher = torch.tensor([TEACHER, 1 - TEACHER], dtype=torch.float64).log().expand(student.shape)
    value = getattr(losses, name)(student, teacher)
    (slope,) = torch.autograd.grad(value.sum(), logit)
    return q, value.detach(), slope


def divergences(path: Path) -> None:
    """Every divergence of two classes against what the student says of the first."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for name in LOSSES:
        q, value, slope = curves(name)
        # soft cross-entropy has the gradient of the KL: dashed, so that both are seen
        style = "--" if name == "soft_cross_entropy" else "-"
        left.plot(q, value, style, label=name)
        right.plot(q, slope, style)
    left.set(ylim=(0, 2), ylabel="loss", title=f"teacher: ({TEACHER}, {1 - TEACHER:.1f})")
    right.set(ylabel="slope in the student's logit", title="how hard each pulls")
    right.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    for axes in (left, right):
        axes.axvline(TEACHER, color="0.6", linestyle=":", linewidth=1)
        axes.set(xlim=(0, 1), xlabel="student's probability of the first class")
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=9, loc="upper center")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    divergences(Path(__file__).parents[1] / "docs" / "images" / "divergences.png")
