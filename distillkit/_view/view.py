"""The viewer: one page that shows where both models look."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .._attention import Attention
from .._backbone.signals import Signals
from .._objective.distiller import Distiller
from .._objective.layer_choice import LayerChoice
from ..errors import OptionError
from .contents import contents_of, scene_of
from .page import page_of
from .sources import Given, Side, sources_of
from .tokens import Explained, given_words


class View:
    """A page that :func:`view` made.

    The last expression of a notebook's cell shows it there, in a frame that can reach neither the
    notebook nor a network.

    Attributes:
        html: the whole page as text.
        tolerance: no probability that it shows is farther from the exact one.
        relative: nor farther than this part of the largest of its row, by which it is coloured.
    """

    def __init__(self, page: str, tolerance: float, relative: float) -> None:
        self.html = page
        self.tolerance = tolerance
        self.relative = relative

    def save(self, path: str | Path) -> Path:
        """Write the page into a file, which any browser opens from disk."""
        path = Path(path)
        path.write_text(self.html, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        page = html.escape(self.html, quote=True)
        return (
            '<iframe title="What is distilled" sandbox="allow-scripts" '
            'style="width: 100%; height: 720px; border: 0" '
            f'srcdoc="{page}"></iframe>'
        )

    def __repr__(self) -> str:
        return f"View({len(self.html.encode()) / 1e6:.2f} MB, tolerance={self.tolerance:.2g})"


def view(
    student: Distiller | nn.Module | Side | Mapping[str, Side],
    teacher: Side | str | None = None,
    /,
    *,
    batch: Mapping[str, Any] | None = None,
    words: Any = None,
    images: Any = None,
    denormalise: Any = None,
    signals: Sequence[str] | str | None = None,
    layers: LayerChoice = "uniform",
) -> View:
    """Show where student and teacher look, example by example, as one self-contained HTML page.

    Both sides stand beside each other with their difference. A word shows where it looks, a patch
    the words that look at it; the Kullback-Leibler divergence of each row stands beside its word.
    Rows that do not count for a loss (padding) are marked. The page needs no network, and nothing
    of a caption or a file name is executed.

    Args:
        student: a :class:`Distiller`, wrapped (DDP, FSDP2, ``torch.compile``) or not, whose models
            run once in eval mode on ``batch``, every layer kept, on every rank alike;
            :class:`Signals`; an :class:`Attention` or the layers of one, bottom to top; or a
            mapping from the names of checkpoints to signals, which become a slider.
        teacher: the teacher's signals or attentions; of a distiller with several, the name of one;
            None shows the student alone. Where its tokens are others and both sides say where
            theirs lie, it is carried onto the student's by :func:`overlap`.
        batch: the batch that signals are of; for a distiller, the one to run.
        words: a tokenizer, for the batch's ``input_ids``; or a list of tokens for each example: all
            of them, or those without padding, or without padding and special tokens. None: numbers.
        images: one image for each example, or a list of several, arrays ``(h, w)`` or ``(h, w,
            3)``, tensors ``(c, h, w)`` or PIL images, with pixels in [0, 1] or bytes; or the batch
            entry of the pixel values, such as ``"pixel_values"``. None: the patches alone.
        denormalise: what pixel values were normalised by: ``(mean, std)``, or an image processor
            that has ``image_mean`` and ``image_std``.
        signals: names of attention signals; ``"all"``: every one that both sides have, within a
            modality too; None: those between text and image where there are any, else all.
        layers: which layers stand beside each other, as :class:`Term` takes them. ``"uniform"``:
            each of the student's with an evenly spaced one of the teacher's. A group shows its last
            layer.

    Returns:
        The page: :meth:`View.save` writes it, a notebook shows it.

    Raises:
        OptionError: arguments that do not go together; pixels outside [0, 1].
        ShapeError: words, images or tokens that do not fit together.
        SignalError: nothing says what the rows and keys of a signal are.

    Examples:
        >>> import torch
        >>> scores = torch.randn(1, 2, 3, 4)
        >>> page = view(
        ...     Attention.from_scores(scores),
        ...     Attention.from_scores(2 * scores),
        ...     words=[["a", "red", "three"]],
        ...     images=[torch.rand(3, 16, 16)],
        ... )
        >>> "three" in page.html
        True
    """
    alone = _has_attention_alone(student) or _has_attention_alone(teacher)
    lists = given_words(words, known=not alone)
    if denormalise is not None and images is None:
        raise OptionError("denormalise= is about images=, which is not given")
    sources = sources_of(student, teacher, batch, Given(lists, images is not None))
    raw = not isinstance(images, str) and denormalise is None
    explained = Explained(words if lists is None else lists, sources.batch, raw)
    scene = scene_of(
        sources,
        asked=signals,
        layers=layers,
        explained=explained,
        images=images,
        denormalise=denormalise,
    )
    contents = contents_of(scene)
    return View(page_of(contents), contents.errors.absolute, contents.errors.relative)


def _has_attention_alone(given: Any) -> bool:
    if isinstance(given, Mapping) and not isinstance(given, Signals):
        return any(map(_has_attention_alone, given.values()))
    return isinstance(given, Attention | list | tuple)
