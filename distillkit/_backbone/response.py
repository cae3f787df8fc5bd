"""Which of a decoder's logits belong to the response, the prompt and the image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .._attention.selection import Selection
from ..errors import ShapeError, SignalError, unknown_name
from .axis import TokenAxis
from .batch import SideOfBatch
from .layout import ModalityTokens, TokenLayout
from .logits import logits_axis, stream_length

PARTS = ("response", "prompt", "image")
IGNORED = -100  # of labels, what transformers' losses leave out

Predicts = Literal["next", "same"]
"""Whether the logits at a position are of the token after it, or of the one at it."""


class LabelRule:
    """Where the logits of a label are; what the labels show is remembered.

    A causal decoder predicts the token after each position, and its labels repeat its input: the
    logits of a label stand one position before it. Labels that differ from the input at their own
    position (masked words, a decoder's targets, labels that a loop has shifted) are predicted
    where they stand.

    Args:
        predicts: ``"next"`` or ``"same"``, where the adapter says it; None: the labels show it.

    Raises:
        SignalError: another word.
    """

    def __init__(self, predicts: str | None = None) -> None:
        if predicts not in (None, "next", "same"):
            error = unknown_name("choice of `predicts`", predicts, ("next", "same"))
            raise SignalError(str(error))
        self._predicts = predicts

    def shifted(self, labels: Tensor, batch: SideOfBatch) -> bool:
        """Whether the logits of a label stand one position before it.

        Raises:
            SignalError: labels that repeat the input in part, so that nobody can tell.
        """
        if self._predicts is None:
            self._predicts = _shown(labels, batch)
        return self._predicts == "next"


def _shown(labels: Tensor, batch: SideOfBatch) -> Predicts | None:
    """What labels and input show; None: there is no label, so that it does not matter yet."""
    kept = labels != IGNORED
    count = int(kept.sum())
    if count == 0:
        return None
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.shape != labels.shape:
        return _unknown("there are no `input_ids` of the labels' shape to compare them with")
    repeated = int((ids == labels)[kept].sum())
    if repeated == count:
        return "next"
    if repeated <= count / 2:
        return "same"
    return _unknown(f"{repeated} of {count} labels repeat the input at their position, the rest no")


def _unknown(why: str) -> Predicts:
    raise SignalError(
        "whether the logits at a position are of that token or of the next one is not known: "
        f'{why}. Say it in the adapter: `predicts = "next"` (a causal decoder whose labels repeat '
        'its input) or `predicts = "same"` (masked words, labels that are shifted already)'
    )


def logit_places(
    name: str, logits: Tensor, layout: TokenLayout, batch: SideOfBatch, rule: LabelRule
) -> Tensor:
    """The positions of logits ``(b, n, v)`` that are of one part, boolean ``(b, n)``.

    Args:
        name: of the signal, ``"logits.response"``, or of what logits are made of in its place.
        logits: the logits, or what they are made of.
        layout: where tokens sit.
        batch: where labels are found.
        rule: where the logits of a label are.

    Every real position is of one part: of the ``response``, where it predicts a token that the
    labels ask for; else of the ``image`` or of the ``prompt``, by the token that stands there.

    Raises:
        SignalError: logits of no known tokens; no labels.
        ShapeError: labels of other positions.
    """
    part = name.rpartition(".")[2]
    axis = logits_axis(logits, layout)
    if axis is None:
        raise SignalError(
            f"{name} are logits (b, n, v) at some of a sequence's tokens, but of logits "
            f"{tuple(logits.shape)} the layout knows no tokens; logits of one answer are `logits`"
        )
    real = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    if axis.valid is not None:
        real = axis.valid.to(logits.device).expand(logits.shape[:2])
    response = real & _predicting(name, logits, axis, batch, rule)
    if part == "response":
        return response
    image = _image_places(logits, axis, layout)
    if part == "image" and image is None:
        raise SignalError(f"there are no {name}: these logits are of words alone")
    others = real & ~response
    if image is None:
        return others
    return others & image if part == "image" else others & ~image


def _predicting(
    name: str, logits: Tensor, axis: TokenAxis, batch: SideOfBatch, rule: LabelRule
) -> Tensor:
    """Boolean ``(b, n)``: the positions at which a label is predicted."""
    labels = batch.labels()
    if not isinstance(labels, Tensor):
        raise SignalError(
            f"{name} are told apart by the batch entry 'labels', {IGNORED} outside of the "
            "response; the batch has none"
        )
    whole = labels.shape == (len(logits), axis.length)
    if labels.shape != logits.shape[:2] and not (whole and axis.positions is not None):
        raise ShapeError(
            f"{name}: the labels are {tuple(labels.shape)}, but the logits are of "
            f"{tuple(logits.shape[:2])} positions; labels have one entry for each position, "
            f"{IGNORED} where nothing is asked for (images too)"
        )
    asked = (labels != IGNORED).to(logits.device)
    if rule.shifted(labels, batch):
        asked = torch.cat([asked[:, 1:], torch.zeros_like(asked[:, :1])], 1)
    if labels.shape == logits.shape[:2]:
        return asked
    assert axis.positions is not None  # the logits are of some tokens of the labelled sequence
    return Selection(axis.positions, labels.shape[1]).along(asked, 1)


def _image_places(logits: Tensor, axis: TokenAxis, layout: TokenLayout) -> Tensor | None:
    """Boolean ``(b, n)``: the image's tokens, where the logits are of a whole joint stream."""
    joint = layout.get("joint")
    if joint is None or axis.modality != "joint" or "image" not in joint:
        return None
    return _marked(joint["image"], stream_length(joint) or logits.shape[1], logits)


def _marked(tokens: ModalityTokens, length: int, like: Tensor) -> Tensor:
    positions = tokens.positions
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        return positions.to(like.device)
    marked = torch.zeros(len(like), length, dtype=torch.bool, device=like.device)
    if isinstance(positions, slice):
        marked[:, positions] = True
        return marked
    index = positions.to(like.device).expand(len(like), -1)
    return marked.scatter(1, index, torch.ones_like(index, dtype=torch.bool))
