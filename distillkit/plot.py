"""Attention drawn with matplotlib: functions that take axes, draw into them and return them.

Installed by the extra ``plot``: ``pip install 'distillkit[plot]'``. What is drawn is what the
losses compare: rows that do not count are left out of means and hatched.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ._attention import Attention
from .errors import OptionError, ShapeError
from .losses import attention_kl, shared_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["attention_over_image", "compare_over_image", "layers_by_heads", "row_divergence"]

Grid: TypeAlias = "tuple[int, int]"


def attention_over_image(
    attention: Tensor,
    image: Any,
    *,
    grid: Grid,
    largest: float | None = None,
    cmap: str = "inferno",
    ax: Axes | None = None,
) -> Axes:
    """Draw where one row looks, over the image that it looks at.

    Args:
        attention: ``(rows * columns,)`` or ``(rows, columns)``: the row's probabilities of the
            patches, without special tokens.
        image: what ``imshow`` takes: ``(h, w)`` grey or ``(h, w, 3)``.
        grid: rows and columns of patches.
        largest: the probability that has the strongest colour; by default the largest given.
        cmap: the name of a colour map.
        ax: where to draw; by default new axes.

    Returns:
        The axes; the map is ``ax.images[-1]``, for a colour bar.

    Raises:
        ShapeError: not one number for each patch.
        ImportError: matplotlib is not installed.
    """
    weights = _in_grid("attention_over_image", attention, grid)
    ax = _axes(ax)
    shape = _show_image(ax, image)
    top = float(weights.max()) if largest is None else largest
    _show_map(ax, weights, shape, cmap, (0.0, top))
    return ax


def compare_over_image(
    student: Tensor,
    teacher: Tensor,
    image: Any,
    *,
    grid: Grid,
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Draw where one row of the teacher and of the student looks, and their difference.

    Args:
        student: ``(rows * columns,)``: the student's probabilities of the patches.
        teacher: the teacher's, of the same patches.
        image: as of :func:`attention_over_image`.
        grid: rows and columns of patches.
        axes: three axes; by default those of a new figure.

    Returns:
        The axes: teacher and student, in one scale of colours, and student minus teacher.

    Raises:
        ShapeError: not one number for each patch.
        OptionError: other than three axes.
        ImportError: matplotlib is not installed.
    """
    name = "compare_over_image"
    ours, theirs = (_in_grid(name, one, grid) for one in (student, teacher))
    if axes is None:
        axes = _pyplot().subplots(1, 3, figsize=(9, 3.2), layout="constrained")[1]
    axes = list(axes)
    if len(axes) != 3:
        raise OptionError(f"{name} draws into three axes; got {len(axes)}")
    largest = max(float(ours.max()), float(theirs.max()))
    for ax, weights, title in zip(axes, (theirs, ours), ("teacher", "student"), strict=False):
        attention_over_image(weights, image, grid=grid, largest=largest, ax=ax)
        ax.set_title(title)
    difference = ours - theirs
    most = float(difference.abs().max())
    shape = _show_image(axes[2], image)
    _show_map(axes[2], difference, shape, "coolwarm", (-most, most))
    axes[2].set_title("student \N{MINUS SIGN} teacher")
    return axes


def row_divergence(
    student: Attention,
    teacher: Attention,
    words: Sequence[str],
    *,
    example: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw how far each row of one example is from the teacher's: the KL of its heads' mean.

    Args:
        student: the student's attention.
        teacher: the teacher's, over the same tokens.
        words: a name for each row.
        example: which example of the batch.
        ax: where to draw; by default new axes.

    Returns:
        The axes, with a bar for each row, the first on top; rows that do not count are hatched.

    Raises:
        ShapeError: attentions of other shapes; not one name for each row.
        ImportError: matplotlib is not installed.
    """
    with torch.no_grad():
        values = attention_kl(student, teacher, heads="mean")[example, 0].float().cpu()
        counts = shared_rows(student, teacher, heads="mean")[example, 0].cpu()
    if len(words) != len(values):
        raise ShapeError(
            f"row_divergence: there are {len(values)} rows, but {len(words)} words: name every "
            "token, special ones and padding too"
        )
    ax = _axes(ax)
    places = range(len(words))
    ax.barh(places, torch.where(counts, values, 0).tolist(), color="#d9480f")
    for place in (counts.logical_not()).nonzero()[:, 0].tolist():
        ax.axhspan(place - 0.4, place + 0.4, fill=False, hatch="////", edgecolor="#9aa3ad", lw=0)
    ax.set_yticks(places, list(words))
    ax.invert_yaxis()
    ax.set_xlabel("KL to the teacher (nats)")
    return ax


def layers_by_heads(
    student: Sequence[Attention],
    teacher: Sequence[Attention],
    *,
    cmap: str = "Oranges",
    ax: Axes | None = None,
) -> Axes:
    """Draw the mean KL of every layer and head: where the two models are most unlike.

    Args:
        student: the student's layers, bottom to top.
        teacher: the teacher's layers that they are compared with, as many, of as many heads.
        cmap: the name of a colour map.
        ax: where to draw; by default new axes.

    Returns:
        The axes; the picture is ``ax.images[-1]``, for a colour bar. A head in which no row counts
        is left white.

    Raises:
        ShapeError: unequally many layers or heads.
        ImportError: matplotlib is not installed.
    """
    if len(student) != len(teacher) or not student:
        raise ShapeError(
            f"layers_by_heads compares layer with layer; got {len(student)} of the student and "
            f"{len(teacher)} of the teacher: pick pairs, such as teacher[1::2]"
        )
    means = []
    with torch.no_grad():
        for one, other in zip(student, teacher, strict=True):
            rows = shared_rows(one, other)
            values = torch.where(rows, attention_kl(one, other), 0).float()
            means.append((values.sum((0, 2)) / rows.sum((0, 2))).cpu())
    if len({len(one) for one in means}) > 1:
        raise ShapeError(
            f"layers_by_heads draws layers of equally many heads; got {[len(x) for x in means]}"
        )
    ax = _axes(ax)
    shown = torch.stack(means)
    ax.imshow(shown.numpy(), cmap=cmap, vmin=0, aspect="auto")
    ax.set_xticks(range(shown.shape[1]), [str(i + 1) for i in range(shown.shape[1])])
    ax.set_yticks(range(shown.shape[0]), [str(i + 1) for i in range(shown.shape[0])])
    ax.set(xlabel="head", ylabel="layer")
    return ax


def _in_grid(function: str, attention: Tensor, grid: Grid) -> Tensor:
    rows, columns = grid
    if attention.numel() != rows * columns or attention.ndim not in (1, 2):
        raise ShapeError(
            f"{function}: a grid of {rows} x {columns} patches takes {rows * columns} "
            f"probabilities; got {tuple(attention.shape)}. Leave special tokens out, such as "
            "row[1:] behind a class token"
        )
    return attention.detach().float().cpu().reshape(rows, columns)


def _show_image(ax: Axes, image: Any) -> tuple[int, int]:
    """The image under a map; its height and width."""
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    shown = ax.imshow(pixels, cmap="gray", interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    height, width = shown.get_array().shape[:2]  # type: ignore[union-attr]
    return height, width


def _show_map(
    ax: Axes, weights: Tensor, shape: tuple[int, int], cmap: str, limits: tuple[float, float]
) -> None:
    height, width = shape
    edges = (-0.5, width - 0.5, height - 0.5, -0.5)
    low, high = limits
    ax.imshow(
        weights.numpy(), cmap=cmap, alpha=0.65, extent=edges, vmin=low, vmax=high,
        interpolation="nearest",
    )  # fmt: skip


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    made: Axes = _pyplot().subplots(layout="constrained")[1]
    return made


def _pyplot() -> Any:
    try:
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ImportError(
            "distillkit.plot draws with matplotlib: pip install 'distillkit[plot]'"
        ) from error
